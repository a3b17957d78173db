"""What was measured, and how to ask it. A time is a list of rounds, so that ratios are taken round by round."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import Any

from eval.benchmarks.head.cases import Case
from eval.benchmarks.head.contenders import CONTENDERS
from eval.benchmarks.head.floor import FLOORS
from eval.benchmarks.head.rounds import Call, Entry, Parts

Seconds = list[float]


@dataclass
class Measured:
    """All about one case. peaks: bytes beyond the inputs; errors: contender → hidden, head.

    first: seconds of the uncounted calls of a contender that compiles, together.
    """

    case: Case
    shares: list[float]
    times: dict[Entry, list[Parts]] = field(default_factory=dict)
    peaks: dict[Entry, int] = field(default_factory=dict)
    errors: dict[str, dict[str, float]] = field(default_factory=dict)
    first: dict[str, float] = field(default_factory=dict)

    def take(self, call: Call) -> None:
        """Keep what was timed."""
        name, parts = call.entry.name, call.parts
        if call.counts:
            self.times.setdefault(call.entry, []).append(parts)
        elif parts and name in CONTENDERS and CONTENDERS[name].compiles:
            self.first[name] = self.first.get(name, 0.0) + sum(parts.values())

    @property
    def names(self) -> list[str]:
        """Contenders and floors of which something was measured, in the order of a round."""
        found = {entry.name for entry in (*self.times, *self.peaks)} | set(self.errors)
        return [name for name in (*FLOORS, *CONTENDERS) if name in found]

    def loss(self, name: str, share: float) -> Seconds | None:
        """Loss and backward of the rows kept, weights known, round by round; None if not measured."""
        return _whole(_at(self.times, name, share))

    def both(self, name: str, share: float) -> Seconds | None:
        """The same where weights depend on statistics: with a pass over all rows, where the contender needs one."""
        after = _whole(self.times.get(Entry(name, "after", share)))
        loss, first = after or self.loss(name, share), self.statistics(name)
        return loss if loss is None or first is None else [a + b for a, b in zip(loss, first, strict=True)]

    def statistics(self, name: str) -> Seconds | None:
        """The pass over all rows alone."""
        return _whole(self.times.get(Entry(name, "statistics", None)))

    def logits(self, name: str, share: float) -> Seconds | None:
        """A floor's products for both models' logits of the rows kept, ρ(Fs + Ft)."""
        rounds = self.times.get(Entry(name, "loss", share)) if name in FLOORS else None
        return rounds and [parts["student"] + parts["teacher"] for parts in rounds]

    def peak(self, name: str, share: float) -> int | None:
        """Peak extra bytes of the loss, weights known."""
        return _at(self.peaks, name, share)

    def peak_of_both(self, name: str, share: float) -> int | None:
        """The same where weights depend on statistics: of that pass, and of the loss after it."""
        loss = self.peaks.get(Entry(name, "after", share), self.peak(name, share))
        return None if loss is None else max(loss, self.peaks.get(Entry(name, "statistics", None), 0))

    def record(self) -> dict[str, Any]:
        """As JSON."""
        entries = sorted({*self.times, *self.peaks}, key=str)
        measured = [
            vars(entry) | {"seconds": self.times.get(entry), "peak_bytes": self.peaks.get(entry)} for entry in entries
        ]
        told = {"case": vars(self.case), "shares": self.shares, "measured": measured, "errors": self.errors}
        return told | {"first_call_seconds": self.first}


def _at(found: dict[Entry, Any], name: str, share: float) -> Any:
    """At this share, or of every row where the contender always computes all."""
    return found.get(Entry(name, "loss", share), found.get(Entry(name, "loss", None)))


def _whole(rounds: list[Parts] | None) -> Seconds | None:
    return rounds and [sum(parts.values()) for parts in rounds]


def ratio(ours: Seconds | None, theirs: Seconds | None) -> float | None:
    """Median over rounds of ours / theirs.

    >>> ratio([2.0, 9.0, 4.0], [1.0, 3.0, 4.0])
    2.0
    """
    if not ours or not theirs:
        return None
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def added(*terms: Seconds | None) -> Seconds | None:
    """Round by round; None if one is missing.

    >>> added([1.0, 2.0], [3.0, 4.0])
    [4.0, 6.0]
    """
    return None if any(term is None for term in terms) else [sum(parts) for parts in zip(*terms, strict=True)]
