"""Rollouts on disk, with text, and for each trained token its statistics and what it weighed."""

from __future__ import annotations

import math
from pathlib import Path

from torch import Tensor

from opd import schedules
from opd.config import Recipe
from opd.doctor import Checked
from opd.rollout.files import step_file, write_rollouts
from opd.step import StepResult


def record_rollouts(folder: Path, index: int, outcome: StepResult, texts: list[str], checked: Checked) -> None:
    """The step's first `metrics.rollouts` rollouts as JSONL; `rollout.path` of another recipe can read them again."""
    shown = outcome.rollouts[: checked.recipe.metrics.rollouts]
    if shown:
        sampled_at = _temperature(checked.recipe, index)
        more = [
            _more(i, text, outcome, checked) | sampled_at for i, text in zip(range(len(shown)), texts, strict=False)
        ]
        write_rollouts(step_file(folder, index), shown, more)


def _temperature(recipe: Recipe, index: int) -> dict[str, float]:
    """What the step sampled at; nothing of rollouts that another run sampled."""
    return {} if recipe.rollout.path else {"temperature": schedules.at(recipe, index).rollout.temperature}


def _more(i: int, text: str, outcome: StepResult, checked: Checked) -> dict:
    table, rollout = outcome.table, outcome.rollouts[i]
    mine_C = table.rollout_C == i
    return {
        "prompt": checked.tokenizer.decode(rollout.prompt),
        "text": text,
        "reward": _or_none(float(table.reward_B[i])),
        "weights": [[_or_none(w) for w in weight_C[mine_C].tolist()] for weight_C in outcome.weights],
        "statistics": {name: _rounded(column[mine_C]) for name, column in table.statistics.items()},
    }


def _rounded(column: Tensor) -> list[float | None]:
    return [_or_none(value) for value in (column.double() * 1e5).round().div(1e5).tolist()]


def _or_none(value: float) -> float | None:
    """JSON knows no NaN (the reward of a prompt without a known answer) and no infinity: null."""
    return value if math.isfinite(value) else None
