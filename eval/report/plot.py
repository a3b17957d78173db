"""Plots of results: scores with intervals, accuracy against length, accuracy against fidelity."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np

from eval.fidelity import Fidelity
from eval.results import Result

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes


def plot_results(results: list[Result], fidelities: list[Fidelity], path: Path) -> None:
    """Write the plot: two panels, and a third where fidelity was measured."""
    figure, panels = plt.subplots(
        1, 3 if fidelities else 2, figsize=(15 if fidelities else 10, 4), layout="constrained"
    )
    models = list(dict.fromkeys(result.model for result in results))
    colors = {model: plt.get_cmap("tab10")(i % 10) for i, model in enumerate(models)}
    _scores(panels[0], results, colors)
    for result in results:
        _point(panels[1], result.score["tokens"], result, colors[result.model])
    panels[1].set(title="accuracy against length", xlabel="mean tokens of an answer", ylabel="%")
    of = {(result.model, result.task): result for result in results}
    for fidelity in fidelities:
        _point(panels[2], fidelity.answers.observed, of[fidelity.student, fidelity.task], colors[fidelity.student])
    if fidelities:
        panels[2].set(title="accuracy against fidelity", xlabel="share of answers that are the teacher's", ylabel="%")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _scores(axes: Axes, results: list[Result], colors: dict[str, tuple]) -> None:
    tasks = list(dict.fromkeys(result.task for result in results))
    width = 0.8 / len(colors)
    for i, (model, color) in enumerate(colors.items()):
        mine = [result for result in results if result.model == model]
        place = np.array([tasks.index(result.task) for result in mine]) + (i - (len(colors) - 1) / 2) * width
        score = np.array([100 * result.score["score"] for result in mine])
        ends = np.array([[100 * result.score[end] for result in mine] for end in ("low", "high")])
        axes.bar(place, score, width, color=color, label=model, yerr=np.abs(ends - score), capsize=3)
    axes.set_xticks(range(len(tasks)), tasks)
    axes.set(title="score with its 95 % interval", ylabel="%")
    axes.legend(fontsize=8)


def _point(axes: Axes, x: float, result: Result, color: tuple) -> None:
    s = result.score
    ends = [[100 * (s["score"] - s["low"])], [100 * (s["high"] - s["score"])]]
    axes.errorbar(x, 100 * s["score"], yerr=ends, marker="o", capsize=3, color=color)
    axes.annotate(result.task, (x, 100 * s["score"]), fontsize=7, xytext=(5, 5), textcoords="offset points")
