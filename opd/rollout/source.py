"""Where a step's rollouts come from: sampled now by an engine, or recorded by an earlier run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from opd.batch import Prompt, Rollout
from opd.rollout.engine import RolloutEngine, Sampling
from opd.rollout.files import read_rollouts, step_file
from opd.rollout.settings import RolloutSettings

Source = Callable[[RolloutSettings, int], list[Rollout]]
"""The settings as they stand at a step, and the step → its rollouts, the same on every rank."""


def live(engine: RolloutEngine, prompts_of: Callable[[int], list[Prompt]], *, seed: int) -> Source:
    """Rollouts of the step's prompts, sampled now from the weights that the engine holds."""

    def source(settings: RolloutSettings, step: int) -> list[Rollout]:
        key = ("rollout", seed, step) if settings.seeded else None
        sampling = Sampling(settings.samples_per_prompt, settings.max_new_tokens, settings.temperature, key)
        return engine.generate(prompts_of(step), sampling)

    return source


def recorded(folder: str | Path) -> Source:
    """Rollouts that another run stored, step by step; DataError in one line for a step that was not."""
    return lambda _, step: read_rollouts(step_file(folder, step))
