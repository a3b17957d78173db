"""The model card that goes with an exported student."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from opd.report.table import ROWS, gain

MEANING = (
    "Exact match of final answers on held-out problems, by the mathematical grader of opd; gains on the same problems, "
    "paired. Every answer as it was graded stands in the run's `answers/`."
)


def write_card(folder: Path, summary: dict[str, Any]) -> None:
    """README.md of the model folder: what it was distilled from, its scores with standard errors, recipe, command."""
    recipe = summary["recipe"]
    lines = [
        "---",
        f"base_model: {recipe['student']['model']}",
        *(["library_name: peft"] if recipe["student"].get("lora") else []),
        "tags: [on-policy-distillation, opd]",
        "---",
        "# A student distilled on its own rollouts",
        "",
        f"`{recipe['student']['model']}` learned from `{recipe['teacher']['model']}` for {summary['steps']} steps.",
        "",
        *_scores(summary["scores"]),
        f"Seed {summary['seed']}, commit {summary['commit']}, {summary['machine']}.",
        "",
        f"```\n{summary['command']}\n```",
        "",
        f"```yaml\n{yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)}```",
    ]
    (folder / "README.md").write_text("\n".join(lines) + "\n")


def _scores(scores: dict[str, Any]) -> list[str]:
    rows = [
        f"| {task} | {name} | {s[who]['score']:.1%} ± {s[who]['stderr']:.1%} | {s[who]['n']} | {gain(s[who])} "
        f"| {s[who]['truncated']:.1%} | {s[who]['tokens']:.0f} |"
        for task, s in scores.items()
        for who, name in ROWS.items()
        if who in s
    ]
    heads = ["task", "model", "score ± standard error", "n", "gain in points [95 %], paired", "cut off", "tokens"]
    return [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", *rows, "", MEANING, ""] if rows else []
