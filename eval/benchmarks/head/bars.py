"""What we hold ourselves to: every bar with its worst case in these results."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from eval.benchmarks.head.cases import Case, Shape
from eval.benchmarks.head.results import Measured, Seconds, added, ratio

KLS = ("reverse_kl", "forward_kl")
Value = Callable[[Measured, float], float | None]
Limit = Callable[[float], float | None]
Way = Callable[[Measured, str, float], Seconds | None]

WAYS: dict[str, Way] = {"known": Measured.loss, "from statistics": Measured.both}
"""How weights come about: known before the pass, or from statistics of all rows."""
Peak = Callable[[Measured, str, float], int | None]
PEAKS: dict[str, Peak] = {"known": Measured.peak, "from statistics": Measured.peak_of_both}


@dataclass(frozen=True)
class Bar:
    """One promise. limit: by share, None where nothing is promised; value: what must not exceed it."""

    text: str
    shown: str
    limit: Limit
    value: Value
    dtype: str | None = None
    objectives: tuple[str, ...] | None = None
    frozen: bool | None = None

    def covers(self, case: Case) -> bool:
        """Whether it speaks of this case."""
        asked = ((self.dtype, case.dtype), (self.frozen, case.frozen))
        return all(want in (None, is_) for want, is_ in asked) and case.objective in (
            self.objectives or (case.objective,)
        )


@dataclass(frozen=True)
class Verdict:
    """A bar's worst value; `where` it stands. within: its share of the limit, met at most 1."""

    bar: Bar
    value: float
    within: float
    where: str


def bars() -> list[Bar]:
    """All of them."""
    return [*floor_bars(), *peer_bars(), *memory_bars(), *error_bars()]


def floor_bars() -> Iterator[Bar]:
    """Time against the products that must be done."""
    sides = (
        ("fp32", "ours", "floor", 1.15),
        ("fp32", "ours-fused", "floor", 1.15),
        ("bf16", "ours", "floor-fp32", 1.15),
        ("bf16", "ours-fused", "floor-fp32", 1.15),
        ("bf16", "ours-fast", "floor", 1.5),
        ("bf16", "ours-fused-fast", "floor", 1.5),
    )
    for dtype, name, floor, most in sides:
        for way, seconds in WAYS.items():
            text = f"time, {dtype}, weights {way}: {name} / {floor}"
            shown, limit = (f"{most}", _flat(most)) if most > 1.3 else (f"{most} (1.3 below 0.25)", _near)
            yield Bar(f"{text}, KLs", shown, limit, _against(name, floor, seconds), dtype, KLS)
            again = _against(name, floor, seconds, logits_again=True)
            yield Bar(f"{text} + ρ(Fs + Ft), JSD", f"{most}", _flat(most), again, dtype, ("jsd",))


def peer_bars() -> Iterator[Bar]:
    """Time against others."""
    for dtype in ("fp32", "bf16"):
        for way, seconds in WAYS.items():
            text = f"time, {dtype}, weights {way}: ours /"
            masked = _against("ours", "trl-masked", seconds)
            yield Bar(f"{text} trl-masked", "0.5 at 0.5, 0.35 at 0.25", {0.5: 0.5, 0.25: 0.35}.get, masked, dtype)
            for peer in ("liger-compiled", "liger-eager"):
                yield Bar(f"{text} {peer}", "0.6 at 0.25", {0.25: 0.6}.get, _against("ours", peer, seconds), dtype)
        text = f"time, {dtype}: ours with its statistics / trl-compact with"
        yield Bar(f"{text} ours", "1", _flat(1.0), _compact_and_our_statistics, dtype)
        yield Bar(f"{text} its own", "1", _flat(1.0), _against("ours", "trl-compact", Measured.both), dtype)


def memory_bars() -> Iterator[Bar]:
    """Peak extra memory against TRL's."""
    for frozen, most in ((False, 0.3), (True, 0.1)):
        for name, (way, peak) in itertools.product(("ours", "ours-fast"), PEAKS.items()):
            text = f"peak memory, head {'frozen' if frozen else 'trains'}, weights {way}: {name} / trl-masked"
            yield Bar(text, f"{most}", _flat(most), _peak_against(name, "trl-masked", peak), frozen=frozen)


def error_bars() -> Iterator[Bar]:
    """Error of the bf16 gradient against the truth; the share plays no part."""
    against = (("ours-fast", "torch", 1.1), ("ours-fused-fast", "torch", 1.1), ("ours", "trl-compact", 1.0))
    for name, peer, most in against:
        for part in ("hidden", "head"):
            text = f"gradient error, bf16, {part}: {name} / {peer}"
            yield Bar(text, f"{most}", _flat(most), _error_against(name, peer, part), "bf16")


def verdicts(found: list[Measured]) -> list[Verdict]:
    """Every bar of which something was measured, at its worst."""
    judged = []
    for bar in bars():
        values = [
            Verdict(bar, value, value / limit, f"{measured.case}, share {share:g}")
            for measured in found
            if bar.covers(measured.case)
            for share in measured.shares
            if (limit := bar.limit(share)) is not None and (value := bar.value(measured, share)) is not None
        ]
        judged += [max(values, key=lambda verdict: verdict.within)] if values else []
    return judged


def beyond_gradient(measured: Measured, name: str, share: float) -> int | None:
    """Peak extra bytes without the head's own gradient, which every method must hold; it has the head's dtype."""
    shape, peak = Shape.named(measured.case.shape), measured.peak(name, share)
    itemsize = 4 if measured.case.dtype == "fp32" else 2
    gradient = 0 if measured.case.frozen else shape.vocabulary * shape.hidden * itemsize
    return None if peak is None else peak - gradient


def _flat(most: float) -> Limit:
    return lambda share: most


def _near(share: float) -> float:
    return 1.15 if share >= 0.25 else 1.3


def _against(name: str, other: str, seconds: Way, *, logits_again: bool = False) -> Value:
    def value(measured: Measured, share: float) -> float | None:
        theirs = seconds(measured, other, share)
        theirs = added(theirs, measured.logits(other, share)) if logits_again else theirs
        return ratio(seconds(measured, name, share), theirs)

    return value


def _compact_and_our_statistics(measured: Measured, share: float) -> float | None:
    theirs = added(measured.loss("trl-compact", share), measured.statistics("ours"))
    return ratio(measured.both("ours", share), theirs)


def _peak_against(name: str, other: str, peak: Peak) -> Value:
    def value(measured: Measured, share: float) -> float | None:
        ours, theirs = peak(measured, name, share), peak(measured, other, share)
        return ours / theirs if ours is not None and theirs else None

    return value


def _error_against(name: str, other: str, part: str) -> Value:
    def value(measured: Measured, share: float) -> float | None:
        ours, theirs = (measured.errors.get(who, {}).get(part) for who in (name, other))
        return ours / theirs if ours is not None and theirs else None

    return value
