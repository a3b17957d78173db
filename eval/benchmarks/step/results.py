"""What was measured, and how to ask it: lines like our metrics.jsonl, from both sides."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

DROPPED = 2
"""Steps at the start of every run that don't count: kernels and memory are found there."""

PHASES = {
    "generate": ("generate",),
    "teacher": ("teacher",),
    "student": ("forward", "backward"),
    "head + loss": ("head", "head_backward"),
    "optimizer": ("optimizer",),
    "sync": ("sync",),
}
"""A step's phases, and what each is the sum of; what is in none of them is `rest`."""

Line = dict[str, Any]


@dataclass
class Measured:
    """One contender. runs: the lines of each of its runs; process_gib: what a look from outside found at most."""

    name: str
    runs: list[list[Line]]
    process_gib: float

    def __add__(self, other: Measured) -> Measured:
        """Both runs of the same contender."""
        return Measured(self.name, self.runs + other.runs, max(self.process_gib, other.process_gib))

    @property
    def steps(self) -> list[Line]:
        """The lines that count."""
        return [line for run in self.runs for line in run[DROPPED:]]

    @property
    def tokens(self) -> list[float]:
        """Completion tokens of each step."""
        return [line["tokens"] for line in self.steps]

    def seconds(self, phase: str) -> list[float]:
        """Of a phase, of `rest`, of the whole `step` or `after generation`, step by step."""
        return [_seconds(line, phase) for line in self.steps]

    def median(self, phase: str) -> float:
        """Seconds of a phase in the median step."""
        return statistics.median(self.seconds(phase))

    def share(self, phase: str, *, of: str) -> float:
        """Median over steps of a phase's share."""
        return statistics.median(a / b for a, b in zip(self.seconds(phase), self.seconds(of), strict=True))

    def rate(self, phase: str = "step") -> float:
        """Completion tokens a second of a phase: all tokens over all seconds."""
        return sum(self.tokens) / sum(self.seconds(phase))

    def missing(self) -> list[str]:
        """Parts of phases that no step had, in order."""
        parts = [part for of in PHASES.values() for part in of]
        return [part for part in parts if not any(line.get(f"time/{part}") for line in self.steps)]

    def step_gib(self, phase: str = "step") -> float:
        """Peak resident memory of the training process during a phase, at any step; 0 where it has no such phase."""
        names = [f"memory/{part}" for part in PHASES.get(phase, (phase,))]
        return max((line[name] for run in self.runs for line in run for name in names if name in line), default=0.0)

    @property
    def whole_gib(self) -> float:
        """Peak over the whole life of the training process, loading and saving included."""
        noted = [v for run in self.runs for line in run for k, v in line.items() if k.startswith("memory/")]
        return max(self.process_gib, *noted)

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return vars(self) | {"whole_gib": self.whole_gib}


def _seconds(line: Line, phase: str) -> float:
    if phase == "after generation":
        return line["time/step"] - _seconds(line, "generate")
    if phase == "rest":
        return line["time/step"] - sum(_seconds(line, known) for known in PHASES)
    return sum(line.get(f"time/{part}", 0.0) for part in PHASES.get(phase, (phase,)))
