"""What the tables show of results that are known by hand."""

import dataclasses
import re

import pytest

from eval.fidelity import Fidelity
from eval.fidelity.answers import AnswerFidelity
from eval.report.fidelity_table import fidelity_table
from eval.report.table import Table, compare_results, comparison_table, scores_table
from eval.results import Result
from eval.scores import Graded, score_of
from opd.errors import RunError

IDENTITY = {
    "task": "gsm8k",
    "version": 2,
    "data": "d",
    "problems": 4,
    "samples": 1,
    "temperature": 0.0,
    "shots": 0,
    "max_new_tokens": 256,
    "prompts": "p",
    "weights": "w",
}


def result(model: str, rights: list[list[int]], **identity) -> Result:
    graded = [[Graded(bool(r), bool(r), "7", "boxed", 100, "stop") for r in problem] for problem in rights]
    samples = len(rights[0])
    mine = IDENTITY | {"samples": samples, "temperature": float(samples > 1)} | identity
    return Result(model, mine, score_of(graded), graded, {})


GREEDY = [result("a", [[1], [0], [0], [0]]), result("b", [[1], [1], [1], [0]])]
SAMPLED = result("c", [[1, 0], [1, 1], [0, 0]])


def cells(table: Table, row: int) -> dict[str, str]:
    return dict(zip(table.heads, table.rows[row], strict=True))


def test_scores_are_shown_with_error_interval_and_protocol():
    shown = cells(scores_table([*GREEDY, SAMPLED]), 0)
    assert (shown["avg"], shown["answers"], shown["pass@k"], shown["maj@k"]) == ("25.0% ± 25.0%", "greedy", "–", "–")
    assert shown["task"] == "gsm8k v2" and re.fullmatch(r"\d+\.\d% to \d+\.\d%", shown["95 %"])
    shown = cells(scores_table([*GREEDY, SAMPLED]), 2)
    assert (shown["answers"], shown["pass@k"], shown["maj@k"]) == ("2, T=1", "66.7% @2", "50.0% @2")


def test_models_are_compared_problem_by_problem():
    shown = cells(comparison_table([(GREEDY[1], GREEDY[0])]), 0)
    assert shown["models"] == "b − a" and shown["n"] == "4"
    assert shown["difference"] == "+50.0% ± 28.9%" and shown["McNemar p"] == "0.500"
    assert cells(comparison_table([(SAMPLED, SAMPLED)]), 0)["McNemar p"] == "–"


def test_a_comparison_says_what_but_the_weights_differs():
    assert "asked alike" not in comparison_table([(GREEDY[0], GREEDY[1])]).caption
    longer = result("b", [[1], [1], [1], [0]], max_new_tokens=1024, prompts="q")
    said = comparison_table([(GREEDY[0], longer)]).caption
    assert "a and b were not asked alike: max_new_tokens 256 and 1024, the prompts' tokens" in said


@pytest.mark.parametrize("other", [{"task": "math500"}, {"version": 1}, {"data": "e"}, {"problems": 5}])
def test_results_of_other_problems_are_not_compared(other):
    with pytest.raises(RunError, match="answered other problems"):
        compare_results(GREEDY[0], result("b", [[1], [1], [1], [0]], **other))


def test_results_of_different_graders_are_not_compared():
    with pytest.raises(RunError, match="version 1 of the grader and b by"):
        compare_results(dataclasses.replace(GREEDY[0], grader=1), GREEDY[1])


def test_failed_and_undecided_answers_are_said():
    grades = [[Graded(False, False, "7", "boxed", 9, "error", True)], [Graded(True, True, "7", "boxed", 9, "stop")]]
    table = scores_table([dataclasses.replace(GREEDY[0], score=score_of(grades), graded=grades)])
    assert cells(table, 0)["cut off"] == "0.0%, 50.0% failed, 50.0% undecided"


def test_fidelity_says_where_it_was_not_measured():
    answers = AnswerFidelity(0.5, 0.1, 0.2, 0.375, 0.75, None, None, 10)
    measure = {"score": 0.9, "stderr": 0.01, "n": 3}
    tokens = {
        whose: {name: measure for name in ("top1", "reverse_kl", "forward_kl")} for whose in ("student", "teacher")
    }
    table = fidelity_table([Fidelity("a", "b", "gsm8k", answers, t, 12.3, None) for t in (tokens, None)])
    assert cells(table, 0)["top-1"] == "90.0% ± 1.0% / 90.0% ± 1.0%" and cells(table, 1)["top-1"] == "other tokenizer"
    assert cells(table, 0)["teacher wrong"] == "–" and cells(table, 0)["BLEU itself"] == "–"


@pytest.mark.parametrize("table", [scores_table(GREEDY), comparison_table([(GREEDY[0], GREEDY[1])])])
def test_markdown_rows_are_as_wide_as_their_head(table):
    lines = [line for line in table.markdown().splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(table.rows) and {line.count("|") for line in lines} == {len(table.heads) + 1}
