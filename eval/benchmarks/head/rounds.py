"""Time: every contender at every share once a round, so that what drifts on the machine drifts for all.

Odd rounds run backwards. One uncounted call of each comes first (kernels are chosen and compiled there), at the
smallest share alone on a CPU. Contenders that compute every row are timed once a round, and stand at every share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from eval.benchmarks.head.cases import Case, Inputs
from eval.benchmarks.head.clock import seconds_of
from eval.benchmarks.head.contenders import CONTENDERS, Contender
from eval.benchmarks.head.floor import FLOORS, Floor
from opd.head.kernels import forget

Parts = dict[str, float]
"""Seconds of the parts of one call: the floor's products, or `all`."""


@dataclass(frozen=True)
class Entry:
    """One line of a round. share None: every row.

    part: `statistics`, `loss` (with its backward), or `after`: the loss where its statistics were made before.
    """

    name: str
    part: str
    share: float | None


def entries(names: list[str], shares: list[float]) -> list[Entry]:
    """A round: what needs every row first, then each share, floors and ours beside each other."""
    every_row = {name for name in names if name not in FLOORS and CONTENDERS[name].every_row}
    statistics = [n for n in names if n in FLOORS or CONTENDERS[n].statistics]
    return [
        *(Entry(name, "statistics", None) for name in statistics),
        *(Entry(name, "loss", None) for name in names if name in every_row),
        *(Entry(name, part, share) for share in shares for name in names for part in parts_of(name, every_row)),
    ]


def parts_of(name: str, every_row: set[str]) -> tuple[str, ...]:
    """What is timed of it at each share."""
    if name in every_row:
        return ()
    return ("loss",) if name in FLOORS or CONTENDERS[name].loss_after is None else ("loss", "after")


def take_part(case: Case, names: list[str]) -> list[str]:
    """Those of the names that have something to show in this case."""
    floors = [name for name in FLOORS if name == "floor" or case.dtype != "fp32"]
    return [n for n in names if (n in floors if n in FLOORS else case.dtype in CONTENDERS[n].dtypes)]


@dataclass
class Bench:
    """A case with its inputs and floors, ready to be timed."""

    case: Case
    inputs: Inputs
    floors: dict[str, Floor]
    smallest: float
    found: dict[str, object] = field(default_factory=dict)

    @classmethod
    def of(cls, case: Case, names: list[str], shares: list[float]) -> Bench:
        """Make the inputs; the floors' forms are chosen when they are first asked."""
        torch.compiler.reset()  # what was compiled for other cases counts against a limit, then all runs eagerly
        forget()
        inputs = case.inputs()
        floors = {n: Floor.of(inputs, FLOORS[n], frozen=case.frozen) for n in names if n in FLOORS}
        return cls(case, inputs, floors, min(shares))

    def seconds(self, entry: Entry) -> Parts:
        """One call."""
        kept_T = self.inputs.kept(self.smallest if entry.share is None else entry.share)
        if entry.name in FLOORS:
            floor = self.floors[entry.name]
            return floor.statistics() if entry.part == "statistics" else floor.loss(kept_T)
        self.inputs.forget_gradients()
        if entry.part == "after" and entry.name not in self.found:
            self.found[entry.name] = CONTENDERS[entry.name].statistics(self.inputs)
        call = call_of(CONTENDERS[entry.name], entry.part, self.inputs, kept_T, self.found.get(entry.name))
        return {"all": seconds_of(call, self.inputs.hidden_TH.device)}


def call_of(
    contender: Contender, part: str, inputs: Inputs, kept_T: Tensor, found: object = None
) -> Callable[[], object]:
    """What is timed, and whose memory is measured. found: the statistics, made before where the part asks for them."""
    if part == "statistics":
        return lambda: contender.statistics(inputs)
    if part == "after":
        found = contender.statistics(inputs) if found is None else found
        return lambda: contender.loss_after(inputs, kept_T, found).backward()
    return lambda: contender.loss(inputs, kept_T).backward()


@dataclass(frozen=True)
class Call:
    """One that has ended. parts: None where it was left out; counts: whether it belongs to a round."""

    entry: Entry
    parts: Parts | None
    counts: bool


def timed(case: Case, names: list[str], shares: list[float], rounds: int) -> Iterator[Call]:
    """Each call as it ends, those before the first round too."""
    bench, plan = Bench.of(case, names, shares), entries(names, shares)
    for entry in plan:
        is_needed = case.device != "cpu" or entry.name in FLOORS or entry.share in (None, bench.smallest)
        yield Call(entry, bench.seconds(entry) if is_needed else None, counts=False)
    for number in range(rounds):
        for entry in reversed(plan) if number % 2 else plan:
            yield Call(entry, bench.seconds(entry), counts=True)
