"""The comparison's plot."""

from pathlib import Path
from typing import Any

import matplotlib

from eval.comparison.results import MEASURES

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def plot(results: dict[str, Any], path: Path) -> None:
    """Both measures against tokens trained on: one point an arm, with standard errors; start and teacher as lines."""
    figure, panels = plt.subplots(1, 2, figsize=(13, 5), layout="constrained")
    selectors = list(dict.fromkeys(name.partition("-")[0] for name in results["arms"]))
    colors = plt.get_cmap("tab20").colors
    for axes, measure, scale in zip(panels, MEASURES, (100, 1), strict=True):
        for name, arm in results["arms"].items():
            selector, _, share = name.partition("-")
            axes.errorbar(
                arm["tokens"]["score"],
                scale * arm[measure]["score"],
                yerr=scale * arm[measure]["stderr"] if arm[measure]["n"] > 1 else None,
                marker={"20": "o", "50": "s"}.get(share, "D"),
                fillstyle="full" if arm[measure]["n"] > 1 else "none",
                color=colors[selectors.index(selector) % len(colors)],
                capsize=3,
                linestyle="none",
                label=name if arm[measure]["n"] > 1 else f"{name} (one seed)",
            )
        axes.axhline(
            scale * results["start"][measure]["score"], linestyle=":", color="grey", label="student, untrained"
        )
        end = scale * results["teacher"]["score"] if measure == "score" else 0.0
        axes.axhline(end, linestyle="--", color="grey", label="teacher")
    panels[0].set(title="exact match on held-out problems, %", xlabel="tokens trained on")
    panels[1].set(title="reverse KL on fixed held-out text, nats a token", xlabel="tokens trained on")
    panels[1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(path, dpi=120)
    plt.close(figure)
