"""The plot of a run: accuracy, reverse KL, and the shares of TIP's four quadrants over steps."""

from __future__ import annotations

from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from opd.metrics import Metrics
from opd.run import RunFolder

Lines = list[Metrics]


def plot_run(folder: RunFolder, metrics: Lines, scores: dict[str, Any]) -> None:
    """Write plot.png into the run's folder."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    for task, by_who in scores.items():
        plot_scores(left, task, by_who)
    _plot(left, metrics, "reward", label="reward of training rollouts, sampled", alpha=0.5)
    left.set(title="exact match: held-out, and rollouts in training", xlabel="step", ylim=(0, 1.02))
    _plot(middle, metrics, "reverse_kl", label="fresh rollouts")
    for by_who in scores.values():
        points = sorted((s["steps"], s["fixed_text"]["reverse_kl"]) for s in by_who.values() if "fixed_text" in s)
        if points:
            middle.plot(*zip(*points, strict=True), "o-", label="fixed text of the start student")
    middle.set(title="reverse KL, nats a token", xlabel="step", ylim=(0, None))
    full = [m for m in metrics if m.get("Q1") is not None]
    if full:
        names = ["Q1 unsure, disagree", "Q2 unsure, agree", "Q3 sure, disagree"]
        right.stackplot([m["step"] for m in full], *([m[n[:2]] for m in full] for n in names), labels=names, alpha=0.8)
    right.set(title="share of tokens in TIP's quadrants (the rest: Q4)", xlabel="step", ylim=(0, None))
    for axes in (left, middle, right):
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8)
    figure.savefig(folder.path / "plot.png", dpi=120)
    plt.close(figure)


def plot_scores(axes: Axes, task: str, by_who: dict[str, Any]) -> None:
    """The student's held-out scores with standard errors, and the teacher's as a line."""
    points = sorted((s["steps"], s["score"], s["stderr"]) for who, s in by_who.items() if who != "teacher")
    steps, values, errors = zip(*points, strict=True)
    axes.errorbar(steps, values, yerr=errors, marker="o", capsize=3, label=f"student, held-out {task}")
    if "teacher" in by_who:
        axes.axhline(by_who["teacher"]["score"], linestyle="--", color="grey", label="teacher")


def _plot(axes: Axes, metrics: Lines, name: str, **style: Any) -> None:
    points = [(m["step"], m[name]) for m in metrics if m.get(name) is not None]
    if points:
        axes.plot(*zip(*points, strict=True), ".-", **style)
