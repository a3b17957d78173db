"""The table at the end of a run."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from opd.run import RunFolder

ROWS = {"teacher": "teacher", "student_start": "student, start", "student_end": "student, end"}


def print_summary(folder: RunFolder, summary: dict[str, Any]) -> None:
    """Scores with standard errors, seconds and memory per phase, tokens/s, and where everything lies."""
    console = Console()
    for task, scores in summary["scores"].items():
        console.print(score_table(task, scores))
    console.print(phase_table(summary["phases"]))
    console.print(
        f"{summary['tokens_per_second']:,.0f} trained tokens/s over {summary['steps']} steps", highlight=False
    )
    console.print(
        f"run   {folder.path}\nmodel {folder.model}\nplot  {folder.path / 'plot.png'}", highlight=False, soft_wrap=True
    )


def score_table(task: str, scores: dict[str, dict[str, Any]]) -> Table:
    """One row for teacher, student at start, student at end."""
    table = Table(title=f"{task}: exact match on held-out problems", title_justify="left")
    for column in ("", "score", "± stderr", "n", "reverse KL on fixed text"):
        table.add_column(column, justify="right" if column else "left")
    for who, name in ROWS.items():
        if who in scores:
            s = scores[who]
            kl = f"{s['fixed_text']['reverse_kl']:.4f} nats/token" if "fixed_text" in s else ""
            table.add_row(name, f"{s['score']:.1%}", f"{s['stderr']:.1%}", str(s["n"]), kl)
    return table


def phase_table(phases: dict[str, float]) -> Table:
    """Wall seconds and peak memory of each phase of the whole run."""
    table = Table(title="where the time went", title_justify="left")
    for column in ("phase", "seconds", "peak GiB"):
        table.add_column(column, justify="left" if column == "phase" else "right")
    for name in sorted(k.removeprefix("time/") for k in phases if k.startswith("time/")):
        table.add_row(name, f"{phases[f'time/{name}']:.1f}", f"{phases[f'memory/{name}']:.2f}")
    return table
