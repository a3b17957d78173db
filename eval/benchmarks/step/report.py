"""step.json (everything) and step.md: phases, what a head costs at each share, bars."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.benchmarks.asked import source
from eval.benchmarks.step.results import DROPPED, PHASES, Measured
from opd.report.markdown import markdown
from opd.run import write_atomic

Cell = Callable[[Measured, str], str]
ROWS = (*PHASES, "rest", "after generation", "step")


@dataclass(frozen=True)
class Ratio:
    """`of` ours and a peer; where it has a bar, at most (or at least) `bar` is promised, and `goal` is aimed for."""

    text: str
    of: Callable[[Measured, Measured], float]
    bar: float | None = None
    at_most: bool = True
    goal: float | None = None

    @property
    def promised(self) -> str:
        """The bar in words."""
        return "–" if self.bar is None else f"{'≤' if self.at_most else '≥'} {self.bar:g}"

    def judged(self, ours: Measured, peer: Measured) -> str:
        """The value, and whether a bar is missed."""
        value = self.of(ours, peer)
        met = self.bar is None or (value <= self.bar if self.at_most else value >= self.bar)
        return f"{value:.2f}" if met else f"**{value:.2f}**, not met"


RATIOS = (
    Ratio(
        "seconds after generation, ours / TRL",
        lambda o, t: o.median("after generation") / t.median("after generation"),
        0.6,
    ),
    Ratio("completion tokens/s, ours / TRL", lambda o, t: o.rate() / t.rate(), 2.5, at_most=False, goal=3.0),
    Ratio("peak resident memory, ours / TRL", lambda o, t: o.whole_gib / t.whole_gib, 0.7, goal=0.5),
    Ratio(
        "seconds after generation a token, ours / TRL",
        lambda o, t: t.rate("after generation") / o.rate("after generation"),
    ),
    Ratio(
        "tokens/s of generation, vLLM / transformers (vLLM's, not ours)",
        lambda o, t: o.rate("generate") / t.rate("generate"),
    ),
    Ratio("peak resident memory while steps run, ours / TRL", lambda o, t: o.step_gib() / t.step_gib()),
)
"""The bars are for all three in one configuration; the rest is reported."""


def write(found: list[Measured], facts: dict[str, Any], to: Path) -> str:
    """Write both files into the folder `to`; returns step.md's text. found: ours first, peers, then ours at shares."""
    to.mkdir(parents=True, exist_ok=True)
    write_atomic(to / "step.json", json.dumps(facts | {"measured": [m.record() for m in found]}, indent=1) + "\n")
    whole, shares = ([m for m in found if m.name.startswith("ours,") is few] for few in (False, True))
    text = (
        f"Seconds a step, median [least–most]:\n\n{grid(whole, ROWS, seconds_cell)}\n"
        f"Completion tokens a second of the phase:\n\n{grid(whole, ROWS, rate_cell)}\n"
        f"Peak resident GiB of the training process:\n\n{grid(whole, (*PHASES, 'step', 'whole'), memory_cell)}\n"
        f"Head and loss in a step of ours:\n\n{share_table([whole[0], *shares])}\n"
        f"{ratios_table(*whole)}\n{caption(whole, facts)}\n"
    )
    write_atomic(to / "step.md", text)
    return text


def grid(found: list[Measured], rows: tuple[str, ...], cell: Cell) -> str:
    """One row a phase, one column a contender."""
    return markdown(["", *(m.name for m in found)], [[row, *(cell(m, row) for m in found)] for row in rows])


def seconds_cell(measured: Measured, phase: str) -> str:
    """Median over steps with the range; a dash where it has no such phase."""
    seconds = measured.seconds(phase)
    return f"{statistics.median(seconds):.2f} [{min(seconds):.2f}–{max(seconds):.2f}]" if any(seconds) else "–"


def rate_cell(measured: Measured, phase: str) -> str:
    """Tokens a second of the phase's own time."""
    return f"{measured.rate(phase):,.0f}" if phase != "rest" and any(measured.seconds(phase)) else "–"


def memory_cell(measured: Measured, phase: str) -> str:
    """GiB."""
    gib = measured.whole_gib if phase == "whole" else measured.step_gib(phase)
    return f"{gib:.2f}" if gib else "–"


def share_table(ours: list[Measured]) -> str:
    """What head and loss (statistics too) are of a step, and of what follows generation, at each share of tokens."""
    rows = [
        [
            m.name,
            f"{statistics.mean(line['term0/kept'] for line in m.steps):.2f}",
            seconds_cell(m, "head + loss"),
            f"{m.share('head + loss', of='step'):.0%}",
            f"{m.share('head + loss', of='after generation'):.0%}",
            seconds_cell(m, "step"),
        ]
        for m in ours
    ]
    titles = ["", "tokens kept", "head + loss, s", "of a step", "of what follows generation", "step, s"]
    return markdown(titles, rows)


def ratios_table(ours: Measured, *peers: Measured) -> str:
    """Every bar and reported ratio against every configuration of TRL."""
    rows = [[r.text, r.promised, f"{r.goal or '–'}", *(r.judged(ours, peer) for peer in peers)] for r in RATIOS]
    return markdown(["", "bar", "goal", *(f"against {peer.name}" for peer in peers)], rows)


def caption(found: list[Measured], facts: dict[str, Any]) -> str:
    """How to read it, and where it comes from."""
    setting = facts["setting"]
    counted = "; ".join(
        f"{m.name}: {len(m.steps)} steps, {statistics.mean(m.tokens):.0f} tokens each{_computes(m)}" for m in found
    )
    return (
        f"Student = teacher; {setting['prompts']} rollouts a step, ours in micro-batches of "
        f"{setting['token_budget']} tokens, padding included, if `--ours` says nothing else, TRL's all at once "
        f"where its name says no rows. Times: the first {DROPPED} steps of a run are dropped; memory: of any step. "
        f"Tokens are those generated (at most {setting['new_tokens']} a rollout, end tokens included), none is "
        "forced. Statistics that nothing needs are measured in every tenth step of ours and in the last, and "
        "count; TRL has the entropy always. student: backbone forward and backward. whole: the process from start "
        f"to end, checkpoint and export of ours included. {counted}. {source(facts)}"
    )


def _computes(measured: Measured) -> str:
    known = {line["dtype"] for line in measured.steps if "dtype" in line}
    return f", hidden states in {', '.join(sorted(known))}" if known else ""
