"""What the grader makes of real answers: their own solutions, rewritings of their form, other problems' answers."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from eval.benchmarks.grader.forms import FORMS
from opd.rewards import Verdict, judge_all

Pair = tuple[str, str]
"""A completion, and the answer that is known."""


def real_answers(data: Path, console: Console, *, show: int) -> None:
    """Print a table: pairs, share accepted, seconds; and every pair that should have been judged otherwise."""
    table = Table("data", "answers", "own solution", "rewritings", "accepted", "another's answer", "seconds")
    for file in sorted(data.glob("*.jsonl")):
        known = [pair for line in file.read_text().splitlines() if (pair := solved(json.loads(line)))[1]]
        began = time.perf_counter()
        own, forms, others = known, rewritten(known), strangers(known)
        kinds = [judged(console, kind, pairs, show) for kind, pairs in (("own", own), ("form", forms))]
        taken = [pair for pair, v in zip(others, judge_all(others), strict=True) if v.flexible]
        seconds = time.perf_counter() - began
        for said, gold in taken[:show]:
            console.print(f"  another's: {said!r} for {gold!r}")
        shares = [f"{kind:.2%}" for kind in kinds]
        stranger = f"{len(taken)} of {len(others)}"
        table.add_row(file.stem, str(len(own)), shares[0], str(len(forms)), shares[1], stranger, f"{seconds:.1f}")
    console.print(table)


def judged(console: Console, kind: str, pairs: list[Pair], show: int) -> float:
    """The share of right completions that are accepted; the others are printed."""
    verdicts: list[Verdict] = judge_all(pairs)
    lost = [(pair, v) for pair, v in zip(pairs, verdicts, strict=True) if not v.flexible]
    for (said, gold), verdict in lost[:show]:
        console.print(f"  {kind}: {verdict.final} of {said[-80:]!r} for {gold!r}")
    return 1 - len(lost) / max(1, len(pairs))


def solved(row: dict[str, str]) -> Pair:
    """(worked solution, answer) of one row."""
    if "solution" in row:
        return row["solution"], row["answer"]
    answer = row["answer"].rpartition("####")[2].strip()
    return (row["answer"] if "####" in row["answer"] else f"The answer is {answer}."), answer


def rewritten(known: list[Pair]) -> list[Pair]:
    """Every answer in every form of FORMS that changes it, as the end of a completion."""
    return [
        (said, answer) for _, answer in known for form in FORMS if (said := form(answer)) is not None and answer.strip()
    ]


def strangers(known: list[Pair]) -> list[Pair]:
    """Each answer in a box, for the next problem of a shuffled order whose answer is written differently."""
    answers = [answer for _, answer in known]
    random.Random(0).shuffle(answers)
    pairs = zip(answers, answers[1:] + answers[:1], strict=True)
    return [(rf"\boxed{{{mine}}}", other) for mine, other in pairs if mine != other]
