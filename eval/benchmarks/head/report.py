"""results.json, table.md (for the README: the first objective, and every bar), full.md (everything), head.png."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

from eval.benchmarks.asked import source
from eval.benchmarks.head.bars import PEAKS, WAYS, Verdict, Way, beyond_gradient, verdicts
from eval.benchmarks.head.contenders import CONTENDERS
from eval.benchmarks.head.error import SAMPLE, SHARE
from eval.benchmarks.head.floor import FLOORS
from eval.benchmarks.head.results import Measured, Seconds, ratio
from opd.report.markdown import markdown
from opd.run import write_atomic

matplotlib.use("Agg")
import matplotlib.pyplot as plt

Cell = Callable[[Measured, str, float], str]
MIB = 1 << 20
MEMORY = "Peak extra MiB, weights known / from statistics"
COLORS = dict(zip((*FLOORS, *CONTENDERS), ("black", "grey", *plt.get_cmap("tab10").colors), strict=False))
LABELS = ("shape", "dtype", "head", "objective")


def write(found: list[Measured], sweep: list[Measured], facts: dict[str, Any], to: Path) -> str:
    """Write all into the folder `to`; returns table.md's text. sweep: peaks by vocabulary; facts: command, commit, …"""
    to.mkdir(parents=True, exist_ok=True)
    results = facts | {"cases": [m.record() for m in found], "vocabularies": [m.record() for m in sweep]}
    write_atomic(to / "results.json", json.dumps(results, indent=1) + "\n")
    text = f"{headline(found)}\n{bars_table(verdicts(found))}\n{sweep_table(sweep)}\n{caption(facts)}\n"
    write_atomic(to / "table.md", text)
    write_atomic(to / "full.md", full(found))
    if shown := _trained_first(found):
        plot(shown, to / "head.png")
    return text


def headline(found: list[Measured]) -> str:
    """Time where weights depend on statistics, and memory, of the first objective with a head that trains."""
    found = _trained_first(found)
    sections = {
        "Seconds, weights from statistics (× floor)": time_cell(Measured.both),
        MEMORY: memory_cell,
    }
    return "\n".join(f"{title}:\n\n{grid(found, cell)}" for title, cell in sections.items())


def full(found: list[Measured]) -> str:
    """Every case: both ways' times, memory, error."""
    sections = {f"Seconds, weights {way}: median [range], × floor": time_cell(of) for way, of in WAYS.items()}
    sections |= {MEMORY: memory_cell}
    text = "\n".join(f"## {title}\n\n{grid(found, cell)}" for title, cell in sections.items())
    errors = f"## Relative error of the gradient: hidden states / head\n\n{grid(found, error_cell, shares=False)}"
    first = f"## Seconds of the first calls, in which they compile\n\n{grid(found, first_cell, shares=False)}"
    return f"{text}\n{errors}\n{first}"


def grid(found: list[Measured], cell: Cell, *, shares: bool = True) -> str:
    """One row a case and share, one column a contender that has anything to show."""
    lines = [(m, share) for m in found for share in (m.shares if shares else m.shares[:1])]
    names = [n for n in (*FLOORS, *CONTENDERS) if any(cell(m, n, s) != "–" for m, s in lines)]
    rows = [[*_labels(m), *([f"{s:g}"] if shares else []), *(cell(m, n, s) for n in names)] for m, s in lines]
    return markdown([*LABELS, *(["share"] if shares else []), *names], rows)


def time_cell(way: Way) -> Cell:
    """Median over rounds with the range, and the ratio to the case's own floor."""

    def cell(measured: Measured, name: str, share: float) -> str:
        seconds, floor = way(measured, name, share), way(measured, "floor", share)
        if not seconds:
            return "–"
        over = "" if name == "floor" or not floor else f", {ratio(seconds, floor):.2f}×"
        return f"{_spread(seconds)}{over}"

    return cell


def memory_cell(measured: Measured, name: str, share: float) -> str:
    """Peak extra MiB: weights known, and where it differs, from statistics."""
    peaks = [peak / MIB for of in PEAKS.values() if (peak := of(measured, name, share)) is not None]
    return " / ".join(dict.fromkeys(f"{peak:,.0f}" for peak in peaks)) or "–"


def error_cell(measured: Measured, name: str, share: float) -> str:
    """Both gradients' errors."""
    return " / ".join(f"{error:.1e}" for error in measured.errors.get(name, {}).values()) or "–"


def first_cell(measured: Measured, name: str, share: float) -> str:
    """Of a contender that compiles."""
    return f"{measured.first[name]:.1f}" if name in measured.first else "–"


def bars_table(judged: list[Verdict]) -> str:
    """Each bar with its worst case."""
    rows = [[v.bar.text, f"≤ {v.bar.shown}", f"{v.value:.2f}", v.where, _met(v.within)] for v in judged]
    return markdown(["bar", "promised", "worst", "where", "met"], rows)


def sweep_table(sweep: list[Measured]) -> str:
    """Peak extra MiB by vocabulary, without the head's own gradient."""

    def cell(measured: Measured, name: str, share: float) -> str:
        beyond = beyond_gradient(measured, name, share)
        return "–" if beyond is None else f"{beyond / MIB:,.0f}"

    title = "Peak extra MiB beyond the head's own gradient, by vocabulary (shape: T x Hs x Ht x V):"
    return f"{title}\n\n{grid(sweep, cell)}" if sweep else ""


def caption(facts: dict[str, Any]) -> str:
    """How to read it, and where it comes from."""
    return (
        f"Medians over {facts['rounds']} interleaved rounds [least–most]; ratios are medians of the rounds' own. "
        "floor: only the matrix products that must be done; floor-fp32: those of a bf16 case in fp32. `trl-compact` "
        "and ours pay a statistics pass over all rows where weights depend on it, the others have the statistics by "
        "the way or none. Memory: growth of a process of its own, with the head's own gradient. Errors: against "
        f"float64, a share of {SHARE:g} of at most {SAMPLE} rows. {source(facts)}"
    )


def plot(found: list[Measured], path: Path) -> None:
    """Time and memory against share: one column a shape and dtype, one line a contender, the floor dashed."""
    figure, panels = plt.subplots(
        2, len(found), figsize=(4.2 * len(found) + 2, 7.5), layout="constrained", squeeze=False, sharex=True
    )
    for (above, below), measured in zip(panels.T, found, strict=True):
        for name in measured.names:
            _line(above, measured, name, lambda m, n, s: _median(m.both(n, s)))
            _line(below, measured, name, lambda m, n, s: (peak := m.peak_of_both(n, s)) and peak / MIB)
        above.set(title=f"{measured.case}", ylim=(0, None))
        below.set(xlabel="share of rows that pay", yscale="log")
    panels[0][0].set_ylabel("seconds, weights from statistics,\nloss and backward")
    panels[1][0].set_ylabel("peak extra memory, MiB, the same")
    lines = {line.get_label(): line for axes in panels.flat for line in axes.get_lines()}
    figure.legend(lines.values(), lines.keys(), loc="outside right center")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _line(axes: Any, measured: Measured, name: str, of: Callable[[Measured, str, float], float | None]) -> None:
    points = [(share, value) for share in sorted(measured.shares) if (value := of(measured, name, share)) is not None]
    if points:
        style = {"linestyle": "--"} if name in FLOORS else {"marker": "o", "markersize": 4}
        axes.plot(*zip(*points, strict=True), label=name, color=COLORS[name], **style)


def _trained_first(found: list[Measured]) -> list[Measured]:
    """Cases of the first objective with a head that trains; all of a frozen head where there are none."""
    trained = [m for m in found if not m.case.frozen] or found
    return [m for m in trained if m.case.objective == trained[0].case.objective]


def _labels(measured: Measured) -> list[str]:
    case = measured.case
    return [case.shape, case.dtype, "frozen" if case.frozen else "trains", case.objective]


def _spread(seconds: Seconds) -> str:
    digits = max(0, 2 - int(f"{min(seconds):e}".partition("e")[2]))
    shown = [f"{value:.{digits}f}" for value in (statistics.median(seconds), min(seconds), max(seconds))]
    return f"{shown[0]} [{shown[1]}–{shown[2]}]"


def _median(seconds: Seconds | None) -> float | None:
    return statistics.median(seconds) if seconds else None


def _met(within: float) -> str:
    return "yes" if within <= 1 else "**no**"
