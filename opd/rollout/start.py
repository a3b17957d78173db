"""The engine that a recipe names, or that `auto` means here."""

from __future__ import annotations

import importlib
import importlib.util

import torch

from opd.distributed import Ranks
from opd.rollout.engine import RolloutEngine
from opd.rollout.settings import RolloutSettings
from opd.seeds import seed_for

ENGINES = {
    "vllm": ("opd.rollout.vllm", "VLLMEngine"),
    "transformers": ("opd.rollout.transformers", "TransformersEngine"),
}
"""Name → module and class, imported only when that engine starts."""


def engine_type(settings: RolloutSettings) -> str:
    """The engine that samples: the named one, or vllm where it is installed, else transformers."""
    if settings.type in ENGINES:
        return settings.type
    return "vllm" if importlib.util.find_spec("vllm") else "transformers"


def start_engine(
    model: str,
    settings: RolloutSettings,
    ranks: Ranks,
    *,
    dtype: torch.dtype,
    max_tokens: int,
    stop: list[int],
    seed: int = 0,
    revision: str | None = None,
) -> RolloutEngine:
    """The engine that the settings name, holding `model`; EngineError in one line if it can't start.

    seed: keys the draws of rollouts that have no seed of their own, together with the engine's number.
    """
    module, name = ENGINES[engine_type(settings)]
    engine = getattr(importlib.import_module(module), name)
    seed = seed_for("engine", seed, ranks.index // settings.tensor_parallel)
    return engine(model, settings, ranks, dtype=dtype, max_tokens=max_tokens, stop=stop, seed=seed, revision=revision)
