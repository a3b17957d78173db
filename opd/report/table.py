"""The table at the end of a run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.table import Table

from opd.metrics import PHASES, STEP_PHASES, Metrics
from opd.run import RunFolder

ROWS = {"teacher": "teacher", "student_start": "student, start", "student_end": "student, end"}


def print_summary(folder: RunFolder, summary: dict[str, Any]) -> None:
    """Scores with standard errors, seconds and memory per phase, tokens/s, and where everything lies."""
    console = Console()
    for task, scores in summary["scores"].items():
        console.print(score_table(task, scores))
    if not summary["scores"]:
        console.print("nothing was scored: the recipe has no `evaluate` section", highlight=False)
    console.print(divergence_line(folder.metrics()), highlight=False)
    console.print(phase_table(summary["phases"]))
    console.print(
        f"{summary['tokens_per_second']:,.0f} trained tokens/s over {summary['steps']} steps", highlight=False
    )
    console.print(
        f"run   {folder.path}\nmodel {folder.model}\nplot  {folder.path / 'plot.png'}", highlight=False, soft_wrap=True
    )


def score_table(task: str, scores: dict[str, dict[str, Any]]) -> Table:
    """One row for teacher, student at start, student at end; gains are paired, with their 95 % interval."""
    table = Table(title=f"{task}: exact match on held-out problems", title_justify="left")
    for column in ("", "score", "± stderr", "n", "gain", "cut off", "reverse KL on fixed text"):
        table.add_column(column, justify="right" if column else "left")
    for who, name in ROWS.items():
        if who in scores:
            s = scores[who]
            kl = f"{s['fixed_text']['reverse_kl']:.4f} nats/token" if "fixed_text" in s else ""
            cells = f"{s['score']:.1%}", f"{s['stderr']:.1%}", str(s["n"]), gain(s), f"{s['truncated']:.1%}"
            table.add_row(name, *cells, kl)
    return table


def gain(score: dict[str, Any]) -> str:
    """A student's paired difference from the untrained one in points, with its 95 % interval."""
    if "gain" not in score:
        return ""
    g = score["gain"]
    return f"{100 * g['difference']:+.1f} [{100 * g['low']:+.1f}, {100 * g['high']:+.1f}]"


def divergence_line(metrics: list[Metrics]) -> str:
    """Reverse KL of the first and of the last fully measured step."""
    full = [(line["step"], line["reverse_kl"]) for line in metrics if line.get("reverse_kl") is not None]
    if not full:
        return "reverse KL was never measured"
    (first, start), (last, end) = full[0], full[-1]
    return f"reverse KL on fresh rollouts: {start:.4f} nats a token in step {first}, {end:.4f} in step {last}"


def phase_table(phases: dict[str, float]) -> Table:
    """Wall seconds and peak memory of each phase of the whole run, resumed or not."""
    table = Table(title="where the time went", title_justify="left")
    for column in ("phase", "seconds", "peak GiB"):
        table.add_column(column, justify="left" if column == "phase" else "right")
    for name, words in _phase_words():
        if f"time/{name}" in phases:
            table.add_row(words, f"{phases[f'time/{name}']:.1f}", f"{phases[f'memory/{name}']:.2f}")
    outer = [name for name in PHASES if f"time/{name}" in phases]
    total, peak = (pick(phases[f"{of}/{n}"] for n in outer) for pick, of in ((sum, "time"), (max, "memory")))
    table.add_section()
    table.add_row("total", f"{total:.1f}", f"{peak:.2f}")
    return table


def _phase_words() -> Iterator[tuple[str, str]]:
    for name, words in PHASES.items():
        yield name, words
        if name == "step":
            yield from ((part, f"  {part}") for part in STEP_PHASES)
