r"""Gradings of which some are hostile, and what became of them: seconds, memory, verdicts."""

from __future__ import annotations

import random
import resource
import time
from collections import Counter
from dataclasses import dataclass

from eval.benchmarks.grader.kinds import KINDS
from opd.grading.isolated import WORKERS, close_workers
from opd.grading.worker import MEMORY_BYTES
from opd.rewards import judge_all

GOLDS = ("12345", r"\frac{17}{23}", "x^2+7x+3", r"\sqrt{19}", r"\begin{pmatrix}3&1\\4&1\end{pmatrix}", "(5, 9]")
"""Known answers that no hostile answer is equal to."""
ENDS = (r"So it is $\boxed{%s}$.", "The answer is $%s$.", "which gives $%s$", r"**Answer:** \[ %s \]")
"""How a completion ends in its answer."""


@dataclass(frozen=True)
class Grading:
    """A completion with its known answer, what the verdict must be, and its hostile kind; empty for an ordinary one."""

    completion: str
    answer: str
    right: bool
    kind: str = ""


def gradings(n: int, hostile: int, seed: int = 0) -> list[Grading]:
    """n gradings in random order, `hostile` of them hostile, all kinds in turn; half of the ordinary ones are right."""
    rng = random.Random(seed)
    kinds = [list(KINDS)[i % len(KINDS)] for i in range(hostile)]
    wrong = [Grading(rng.choice(ENDS) % KINDS[kind](rng), rng.choice(GOLDS), False, kind) for kind in kinds]
    mixed = wrong + [ordinary(i, rng) for i in range(n - hostile)]
    rng.shuffle(mixed)
    return mixed


def ordinary(i: int, rng: random.Random) -> Grading:
    """The i-th ordinary answer: an integer, a fraction, a pair, or (one in four) a polynomial that needs algebra."""
    known, b, right = i + 2, rng.randint(2, 99), rng.random() < 0.5
    said = known if right else known + 1
    found, gold = (
        (f"{said:,}", f"{known}"),
        (rf"\dfrac{{{said}}}{{{b}}}", f"{known}/{b}"),
        (f"({said}, {b})", rf"\left({known},\,{b}\right)"),
        (f"{b}(x + {said})", f"{b}x + {b * known}"),
    )[i % 4]
    return Grading(rng.choice(ENDS) % found, gold, right)


@dataclass(frozen=True)
class Measured:
    """What became of so many gradings.

    own_mib, worker_mib: peak memory of this process since it began, and of the worker that took most. hostile: how many
    by kind. mistaken: those that were judged otherwise than they are.
    """

    gradings: int
    seconds: float
    own_mib: float
    worker_mib: float
    hostile: Counter[str]
    mistaken: list[Grading]

    def report(self, show: int = 20) -> str:
        """All of it in words, and the first mistakes."""
        taken, hostile = sum(bool(one.kind) for one in self.mistaken), self.hostile.total()
        lines = [
            f"{self.gradings:,} gradings in {self.seconds:.1f} s by {WORKERS} workers",
            f"peak memory: this process {self.own_mib:.0f} MiB, the largest worker {self.worker_mib:.0f} MiB "
            f"(its bound is {MEMORY_BYTES >> 20})",
            f"hostile: {hostile}, {hostile - taken} of them judged wrong; "
            + ", ".join(f"{kind} {count}" for kind, count in self.hostile.items()),
            f"ordinary: {self.gradings - hostile:,}, {len(self.mistaken) - taken} judged otherwise than they are",
        ]
        shown = [f"  {one.kind or 'ordinary'}: {one.completion[-80:]!r} for {one.answer!r}" for one in self.mistaken]
        return "\n".join(lines + shown[:show])


def measured(asked: list[Grading]) -> Measured:
    """Grade all as the trainer does, then end the workers: an ended process says what memory it took."""
    began = time.perf_counter()
    verdicts = judge_all((one.completion, one.answer) for one in asked)
    seconds = time.perf_counter() - began
    close_workers()
    kinds = Counter(one.kind for one in asked if one.kind)
    mistaken = [one for one, verdict in zip(asked, verdicts, strict=True) if verdict.flexible != one.right]
    peaks = (resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return Measured(len(asked), seconds, *peaks, kinds, mistaken)
