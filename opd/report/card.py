"""The model cards that go with an exported student: README.md, whose head the Hugging Face hub reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from opd.hub import is_hub_id
from opd.report.markdown import markdown
from opd.report.table import ROWS, gain
from opd.run import RunFolder

MEANING = (
    "Exact match of final answers on held-out problems, by the mathematical grader of opd; gains on the same problems, "
    "paired. Every answer as it was graded stands in the run's `answers/`."
)


def write_cards(folder: RunFolder, summary: dict[str, Any]) -> None:
    """A card into each folder that the run left: model/ and best/, and merged/ in them."""
    for place, best in ((folder.model, None), (folder.best, folder.best_score())):
        for path, merged in ((place, False), (place / "merged", True)):
            if path.is_dir():
                write_card(path, summary, merged=merged, best=best)


def write_card(
    folder: Path, summary: dict[str, Any], *, merged: bool = False, best: dict[str, Any] | None = None
) -> None:
    """README.md of a model folder: what it was distilled from, its scores with standard errors, recipe, command.

    merged: the folder holds the model with its adapter merged. best: the score of the student in it, where that is not
    the last one.
    """
    recipe = summary["recipe"]
    head = yaml.safe_dump(metadata(recipe, merged=merged), sort_keys=False, allow_unicode=True, default_flow_style=None)
    steps = best["steps"] if best else summary["steps"]
    lines = [
        f"---\n{head}---",
        "# A student distilled on its own rollouts",
        "",
        f"`{recipe['student']['model']}` learned from `{recipe['teacher']['model']}` for {steps} steps.",
        "",
        *_kind(recipe, merged),
        *(_best(best) if best else []),
        *_scores(summary["scores"]),
        f"Seed {summary['seed']}, commit {summary['commit']}, {summary['machine']}; {_processes(summary)}.",
        "",
        f"```\n{summary['command']}\n```",
        "",
        f"```yaml\n{yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)}```",
    ]
    (folder / "README.md").write_text("\n".join(lines) + "\n")


def metadata(recipe: dict[str, Any], *, merged: bool) -> dict[str, Any]:
    """What the hub reads: base model and how this one came from it, library, task, tags, data sets."""
    lora, student, data = recipe["student"].get("lora"), recipe["student"]["model"], recipe["prompts"].get("dataset")
    is_adapter = bool(lora) and not merged
    found: dict[str, Any] = {}
    if is_hub_id(student):
        found |= {"base_model": student, "base_model_relation": "adapter" if is_adapter else "finetune"}
    found |= {"library_name": "peft" if is_adapter else "transformers", "pipeline_tag": "text-generation"}
    found["tags"] = ["on-policy-distillation", "opd", *(["lora"] if lora else [])]
    return found | ({"datasets": [data]} if data and is_hub_id(data) else {})


def _kind(recipe: dict[str, Any], merged: bool) -> list[str]:
    if not (lora := recipe["student"].get("lora")):
        return []
    what = f"low-rank adapter (rank {lora['rank']}, alpha {lora['alpha']}, on {', '.join(lora['targets'])})"
    if merged:
        return [f"This is the merged model: its {what} is added to the weights, and it loads without peft.", ""]
    return [f"This is its {what}, which peft loads beside `{recipe['student']['model']}`.", ""]


def _processes(summary: dict[str, Any]) -> str:
    """On how many ranks, by `accelerate launch` where there are several, and where it was resumed."""
    ranks = "one rank" if summary["ranks"] == 1 else f"{summary['ranks']} ranks of `accelerate launch`"
    resumed = "".join(f", resumed after step {p['from_step']} (commit {p['commit']})" for p in summary["resumed"])
    return f"{ranks}, ZeRO stage {summary['zero_stage']}{resumed}"


def _best(best: dict[str, Any]) -> list[str]:
    return [
        f"This is the student after step {best['steps']}, the best of all trained ones that were scored "
        f"({best['score']:.1%} ± {best['stderr']:.1%}). It was chosen on these problems: a score to be reported wants "
        "others.",
        "",
    ]


def _scores(scores: dict[str, Any]) -> list[str]:
    rows = [(task, name, *_cells(s[who])) for task, s in scores.items() for who, name in ROWS.items() if who in s]
    heads = ["task", "model", "score ± standard error", "n", "gain in points [95 %], paired", "cut off", "tokens"]
    return [markdown(heads, rows), MEANING, ""] if rows else []


def _cells(s: dict[str, Any]) -> tuple[str, ...]:
    return f"{s['score']:.1%} ± {s['stderr']:.1%}", str(s["n"]), gain(s), f"{s['truncated']:.1%}", f"{s['tokens']:.0f}"
