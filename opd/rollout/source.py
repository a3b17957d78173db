"""Where a step's rollouts come from: sampled now by an engine, or recorded by an earlier run."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path

import torch

from opd.batch import Prompt, Rollout
from opd.distributed import Ranks
from opd.errors import DataError
from opd.rollout.engine import RolloutEngine, Sampling
from opd.rollout.settings import RolloutSettings
from opd.seeds import seed_for

Source = Callable[[int], list[Rollout]]
"""step → its rollouts, the same on every rank."""


def live(
    engine: RolloutEngine, prompts_of: Callable[[int], list[Prompt]], settings: RolloutSettings, *, seed: int
) -> Source:
    """Rollouts of the step's prompts, sampled now from the weights that the engine holds."""
    seeded = settings.seeded if settings.seeded is not None else not torch.cuda.is_available()

    def source(step: int) -> list[Rollout]:
        key = ("rollout", seed, step) if seeded else None
        sampling = Sampling(settings.samples_per_prompt, settings.max_new_tokens, settings.temperature, key)
        return engine.generate(prompts_of(step), sampling)

    return source


def recorded(folder: str | Path) -> Source:
    """Rollouts that another run stored, step by step; DataError in one line for a step that was not."""

    def source(step: int) -> list[Rollout]:
        return read_rollouts(step_file(folder, step))

    return source


def step_file(folder: str | Path, step: int) -> Path:
    """The file of a step's rollouts; steps count from 1 in names, as they do for people."""
    return Path(folder) / f"step-{step + 1:06d}.jsonl"


def read_rollouts(path: Path) -> list[Rollout]:
    """Rollouts from a JSONL file; keys beyond Rollout's own (statistics, text) are left out."""
    if not path.is_file():
        raise DataError(f"there are no recorded rollouts at {str(path)!r}; record as many steps as you train")
    names = {f.name for f in fields(Rollout)}
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [Rollout(**{k: v for k, v in line.items() if k in names}) for line in lines]


def write_rollouts(path: Path, rollouts: list[Rollout], more: list[dict] | None = None) -> None:
    """One JSON line a rollout, with whatever `more` says about each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = zip(rollouts, more or [{}] * len(rollouts), strict=True)
    path.write_text("".join(json.dumps(asdict(r) | extra, default=str) + "\n" for r, extra in rows))


def engine_type(settings: RolloutSettings) -> str:
    """The engine that `auto` means here."""
    if settings.type != "auto":
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

    seed: keys the draws of rollouts that have no seed of their own, together with the rank.
    """
    seed = seed_for("engine", seed, ranks.index)
    if engine_type(settings) == "vllm":
        from opd.rollout.vllm import VLLMEngine

        return VLLMEngine(
            model, settings, ranks, dtype=dtype, max_tokens=max_tokens, stop=stop, seed=seed, revision=revision
        )
    from opd.rollout.transformers import TransformersEngine

    return TransformersEngine(model, ranks, dtype=dtype, stop=stop, seed=seed, revision=revision)
