r"""What the grader makes of real answers: their own solutions, rewritings of their form, and other problems' answers.

    python -m eval.benchmarks.grader --data FOLDER

FOLDER holds JSONL files with `answer`, or `answer` at the end of GSM8K's worked text, and perhaps `solution`.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from opd.grading.numbers import number
from opd.rewards import Verdict, judge_all

INTEGER = re.compile(r"-?\d+$")
SMALL_FRACTION = re.compile(r"(-?)\\d?frac\{(\d+)\}\{(\d+)\}$")
Pair = tuple[str, str]


def main(words: list[str] | None = None) -> None:
    """Print a table: pairs, share accepted, seconds; and every pair that should have been judged otherwise."""
    parser = argparse.ArgumentParser("python -m eval.benchmarks.grader", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--show", type=int, default=20, help="wrong verdicts to print of each kind")
    asked = parser.parse_args(words)
    table = Table("data", "answers", "own solution", "rewritings", "accepted", "another's answer", "seconds")
    console = Console()
    for file in sorted(asked.data.glob("*.jsonl")):
        known = [pair for line in file.read_text().splitlines() if (pair := solved(json.loads(line)))[1]]
        began = time.perf_counter()
        own, forms, others = known, rewritten(known), strangers(known)
        kinds = [judged(console, kind, pairs, asked.show) for kind, pairs in (("own", own), ("form", forms))]
        taken = [pair for pair, v in zip(others, judge_all(others), strict=True) if v.flexible]
        seconds = time.perf_counter() - began
        for said, gold in taken[: asked.show]:
            console.print(f"  another's: {said!r} for {gold!r}", markup=False, highlight=False)
        shares = [f"{kind:.2%}" for kind in kinds]
        stranger = f"{len(taken)} of {len(others)}"
        table.add_row(file.stem, str(len(own)), shares[0], str(len(forms)), shares[1], stranger, f"{seconds:.1f}")
    console.print(table)


def judged(console: Console, kind: str, pairs: list[Pair], show: int) -> float:
    """The share of right completions that are accepted; the others are printed."""
    verdicts: list[Verdict] = judge_all(pairs)
    lost = [(pair, v) for pair, v in zip(pairs, verdicts, strict=True) if not v.flexible]
    for (said, gold), verdict in lost[:show]:
        console.print(f"  {kind}: {verdict.final} of {said[-80:]!r} for {gold!r}", markup=False, highlight=False)
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


def strangers(known: list[Pair], seed: int = 0) -> list[Pair]:
    """Each answer in a box, for the next problem of a shuffled order whose answer is written differently."""
    answers = [answer for _, answer in known]
    random.Random(seed).shuffle(answers)
    pairs = zip(answers, answers[1:] + answers[:1], strict=True)
    return [(rf"\boxed{{{mine}}}", other) for mine, other in pairs if mine != other]


def box(text: str) -> str:
    """As a completion ends."""
    return rf"So it is $\boxed{{{text}}}$."


def spaced(answer: str) -> str:
    """More spaces."""
    return box("  " + re.sub(r"([+=,])(?!\d)", r" \1\\, ", answer) + " ")


def tall(answer: str) -> str | None:
    r"""\dfrac for \frac."""
    return box(answer.replace(r"\frac", r"\dfrac")) if r"\frac" in answer else None


def slashed(answer: str) -> str | None:
    r"""1/2 for \frac{1}{2}."""
    return box(f"{m[1]}{m[2]}/{m[3]}") if (m := SMALL_FRACTION.match(answer)) else None


def decimal(answer: str) -> str | None:
    """An exact decimal for a fraction or an integer."""
    value = number(answer)
    if value is None or 10**6 % value.denominator:
        return None
    digits = f"{float(value):.6f}".rstrip("0")
    return box(digits + "0" if digits.endswith(".") else digits)


def with_unit(answer: str) -> str | None:
    """A unit behind a bare number."""
    return box(rf"{answer} \text{{ units}}") if number(answer) is not None else None


def in_words(answer: str) -> str:
    """A sentence, no box."""
    return f"Adding up, the final answer is ${answer.strip()}$."


def bold(answer: str) -> str:
    """Markdown."""
    return f"**Answer:** ${answer.strip()}$"


def with_left_side(answer: str) -> str | None:
    """x = 5 for 5."""
    return box(f"x = {answer}") if number(answer) is not None else None


def with_thousands(answer: str) -> str | None:
    """1,234 for 1234."""
    return box(f"{int(answer):,}") if INTEGER.match(answer) and abs(int(answer)) > 999 else None


def stopped(answer: str) -> str:
    """A full stop in the box."""
    return box(f"{answer}.")


def grown(answer: str) -> str | None:
    r"""\left( and \right)."""
    if "(" not in answer or r"\left" in answer:
        return None
    return box(re.sub(r"(?<!\\)([\])])", r"\\right\1", re.sub(r"(?<!\\)([\[(])", r"\\left\1", answer)))


def reordered(answer: str) -> str | None:
    """A list of solutions from the last to the first."""
    if not re.fullmatch(r"[^()\[\]]+", answer) or "," not in answer or re.search(r"\d,\d{3}|,\\!|\{,\}", answer):
        return None
    if r"\text" in answer:
        return None
    inside = re.fullmatch(r"\\\{(.*)\\\}", answer)
    parts = [part.strip() for part in (inside[1] if inside else answer).split(",")]
    return box(rf"\{{{', '.join(parts[::-1])}\}}" if inside else ", ".join(parts[::-1]))


def without_degrees(answer: str) -> str | None:
    """90 for 90 degrees."""
    bare = re.sub(r"\^\{?\\circ\}?", "", answer)
    return box(f"{bare} degrees") if bare != answer and INTEGER.match(bare) else None


def plain_text(answer: str) -> str | None:
    r"""even for \text{even}."""
    return box(m[1]) if (m := re.fullmatch(r"\\text\{([A-Za-z ]+)\}", answer)) else None


def minus_sign(answer: str) -> str | None:
    """The typographic minus."""
    return box(answer.replace("-", "−")) if "-" in answer and "text" not in answer else None


FORMS: tuple[Callable[[str], str | None], ...] = (
    spaced, tall, slashed, decimal, with_unit, in_words, bold, with_left_side, with_thousands, stopped, grown,
    reordered, without_degrees, plain_text, minus_sign,
)  # fmt: skip


if __name__ == "__main__":
    main()
