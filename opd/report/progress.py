"""One line while something long runs: how far it is, what it says about itself, time left."""

from __future__ import annotations

import math

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from opd.metrics import Metrics

LINES = 10
"""Plain lines in all, where the output is not a terminal."""


class Progress:
    """A live line on a terminal, about ten plain lines elsewhere, nothing on ranks that are not shown.

    unit: what is counted, as in `step 3/10`.
    """

    def __init__(self, steps: int, *, done: int = 0, shown: bool = True, unit: str = "step") -> None:
        self.steps, self.done, self.shown, self.unit = steps, done, shown, unit
        self.console = Console(stderr=True)
        self.bar = RichProgress(
            TextColumn(unit),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not (shown and self.console.is_terminal),
        )

    def __enter__(self) -> Progress:
        self.bar.start()
        self.task = self.bar.add_task("", total=self.steps, completed=self.done)
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def show(self, step: int, line: str) -> None:
        """That `step` of all are done, with a line about it."""
        self.bar.update(self.task, completed=step, description=line)
        tenth = max(1, self.steps // LINES)
        passed = step // tenth > self.done // tenth or step == self.steps or self.done == 0
        if self.shown and not self.console.is_terminal and passed:
            self.console.print(f"{self.unit} {step}/{self.steps}  {line}", highlight=False)
        self.done = step

    def advance(self, line: str, by: int = 1) -> None:
        """That so many more are done."""
        self.show(self.done + by, line)


def describe(metrics: Metrics) -> str:
    """The metrics that one watches, in one line."""
    shown = {"loss": ".4f", "term0/kept": ".0%", "reward": ".1%", "tokens_per_second": ",.0f"}
    names = {"term0/kept": "kept", "tokens_per_second": "tokens/s"}
    parts = [
        f"{names.get(k, k)} {metrics[k]:{f}}" for k, f in shown.items() if not math.isnan(metrics.get(k, math.nan))
    ]
    return "  ".join(parts)
