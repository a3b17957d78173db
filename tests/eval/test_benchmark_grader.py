"""The grader's benchmark: hostile answers of every kind are wrong and soon over, and mistakes are told."""

import json
from collections import Counter
from pathlib import Path

import pytest

from eval.benchmarks.grader.__main__ import main
from eval.benchmarks.grader.hostile import Grading, gradings, measured
from eval.benchmarks.grader.kinds import KINDS
from opd.grading.worker import MEMORY_BYTES


def test_hostile_answers_are_wrong_and_ordinary_ones_what_they_are():
    asked = gradings(60, 2 * len(KINDS))
    found = measured(asked)
    assert found.mistaken == []
    assert found.hostile == Counter(dict.fromkeys(KINDS, 2))
    assert {one.right for one in asked if not one.kind} == {True, False}
    assert 0 < found.seconds < 120, "five a worker that are waited for to the end, on a busy machine"
    assert found.own_mib > 0 and 0 < found.worker_mib < MEMORY_BYTES >> 20


def test_a_mistake_is_told():
    found = measured([Grading(r"\boxed{7}", "7", False, "bait"), Grading(r"\boxed{8}", "8", True)])
    assert [one.kind for one in found.mistaken] == ["bait"]
    assert "hostile: 1, 0 of them judged wrong; bait 1" in found.report()
    assert "ordinary: 1, 0 judged otherwise" in found.report()
    assert r"bait: '\\boxed{7}' for '7'" in found.report() and "boxed" not in found.report(show=0)


def test_gradings_follow_from_their_seed():
    assert gradings(40, 12) == gradings(40, 12) != gradings(40, 12, seed=1)


def test_the_command_reads_a_folder_of_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rows = [{"solution": r"so \boxed{\frac{1}{2}}", "answer": r"\frac{1}{2}"}, {"answer": "2 + 2 = 4\n#### 4"}]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    main(["--gradings", "4", "--hostile", "0", "--data", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "4 gradings in" in printed and "ordinary: 4, 0 judged otherwise" in printed
    assert "mine" in printed and printed.count("100.00%") == 2
