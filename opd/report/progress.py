"""One line while training runs: step, loss, share kept, reward, tokens/s, time left."""

from __future__ import annotations

import math

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from opd.metrics import Metrics

LINES = 10
"""Plain lines in all, where the output is not a terminal."""


class Progress:
    """A live line on a terminal, about ten plain lines elsewhere, nothing on ranks that are not shown."""

    def __init__(self, steps: int, *, done: int, shown: bool) -> None:
        self.steps, self.done, self.shown = steps, done, shown
        self.console = Console(stderr=True)
        self.bar = RichProgress(
            TextColumn("train"),
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

    def show(self, step: int, metrics: Metrics) -> None:
        """The step's line."""
        line = describe(metrics)
        self.bar.update(self.task, completed=step, description=line)
        plain = self.shown and not self.console.is_terminal
        if plain and (step % max(1, self.steps // LINES) == 0 or step in (1, self.steps)):
            self.console.print(f"step {step}/{self.steps}  {line}", highlight=False)


def describe(metrics: Metrics) -> str:
    """The metrics that one watches, in one line."""
    shown = {"loss": ".4f", "term0/kept": ".0%", "reward": ".1%", "tokens_per_second": ",.0f"}
    names = {"term0/kept": "kept", "tokens_per_second": "tokens/s"}
    parts = [
        f"{names.get(k, k)} {metrics[k]:{f}}" for k, f in shown.items() if not math.isnan(metrics.get(k, math.nan))
    ]
    return "  ".join(parts)
