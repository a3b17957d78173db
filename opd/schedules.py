"""Every value that changes with training progress is resolved here, before a step: a pure function of the step."""

from __future__ import annotations

from typing import Any

import torch
from transformers import get_scheduler

from opd.config import OptimizerSettings, Recipe
from opd.record import Ramp, Record


def at(recipe: Recipe, step: int) -> Recipe:
    """The recipe as it stands at a step (0 … steps − 1): every ramp a number, `optimizer.lr` the step's rate.

    Progress is 0 in the first step and 1 in the last, so a resumed run finds the same values.
    """
    now = _resolved(recipe, step / max(1, recipe.steps - 1))
    rate = learning_rate(recipe.optimizer, step, recipe.steps)
    return now.model_copy(update={"optimizer": now.optimizer.model_copy(update={"lr": rate})})


def moving(recipe: Recipe, now: Recipe) -> dict[str, float]:
    """The values at a step of all ramps of the recipe, by their key; the learning rate has a metric of its own."""
    return dict(_moving(recipe, now, ""))


def learning_rate(optimizer: OptimizerSettings, step: int, steps: int) -> float:
    """The learning rate of step 0 … steps − 1, by transformers' schedules.

    Warm-up counts from step 1, so that no step is lost at a rate of 0.
    """
    dummy = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=1.0)
    cosine = {"min_lr_rate": optimizer.min_lr_share}
    name = "cosine_with_min_lr" if optimizer.schedule == "cosine" else optimizer.schedule
    name = "constant_with_warmup" if name == "constant" else name
    schedule = get_scheduler(
        name,
        dummy,
        num_warmup_steps=optimizer.warmup,
        num_training_steps=steps,
        scheduler_specific_kwargs=cosine if optimizer.schedule == "cosine" else None,
    )
    at = step + 1 if step < optimizer.warmup else step
    return optimizer.lr * schedule.lr_lambdas[0](at)


def warmup_warning(recipe: Recipe) -> str | None:
    """A line for the user where the run ends before its warm-up does."""
    warmup, steps = recipe.optimizer.warmup, recipe.steps
    if warmup <= steps:
        return None
    reached = f"{learning_rate(recipe.optimizer, steps - 1, steps):.2g}"
    return (
        f"warning: optimizer.warmup {warmup} is longer than the run of {steps} steps, which ends at a rate of "
        f"{reached} instead of optimizer.lr {recipe.optimizer.lr:g}; lower it"
    )


def _resolved(value: Any, progress: float) -> Any:
    if isinstance(value, Ramp):
        return value.at(progress)
    if isinstance(value, Record):
        fields = {name: (old, _resolved(old, progress)) for name, old in value}
        changed = {name: new for name, (old, new) in fields.items() if new is not old}
        return value.model_copy(update=changed) if changed else value
    if isinstance(value, list):
        resolved = [_resolved(item, progress) for item in value]
        return resolved if any(a is not b for a, b in zip(resolved, value, strict=True)) else value
    return value


def _moving(before: Any, now: Any, key: str) -> list[tuple[str, float]]:
    if isinstance(before, Ramp):
        return [(key, now)]
    if isinstance(before, Record):
        pairs = [(name, value, getattr(now, name)) for name, value in before]
    elif isinstance(before, list):
        pairs = [(str(i), a, b) for i, (a, b) in enumerate(zip(before, now, strict=True))]
    else:
        return []
    return [found for name, a, b in pairs for found in _moving(a, b, f"{key}.{name}" if key else name)]
