"""What trains, and what a rank must hold for it: from the models' configurations, before a weight is loaded."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from opd.config import Recipe
from opd.lora import targeted
from opd.models import DTYPES, empty_model, load_config
from opd.rollout.start import engine_type

GIB = 1 << 30
MASTER_AND_ADAM = {"bf16": 12, "fp32": 8}
"""Bytes a trained weight: an fp32 master where the weight is short, and Adam's two averages."""


@dataclass(frozen=True)
class Sizes:
    """Weights: all of the student's, those of it that train, the teacher's; adapters: layers that have one, 0: none."""

    student: int
    trained: int
    teacher: int
    adapters: int

    @property
    def words(self) -> str:
        """What trains, for the user."""
        beside = f", in adapters beside {self.adapters} of its layers" if self.adapters else ""
        return f"trains {self.trained:,} of the student's {self.student:,} weights{beside}"


def sizes_of(recipe: Recipe) -> Sizes:
    """Counted on models without memory; a tied head counts once."""
    student, teacher = (empty_model(load_config(m.model, m.revision)) for m in (recipe.student, recipe.teacher))
    every, teachers = (sum(p.numel() for p in model.parameters()) for model in (student, teacher))
    if (lora := recipe.student.lora) is None:
        return Sizes(every, every, teachers, adapters=0)
    layers = [student.get_submodule(name) for name in targeted(student, lora.targets)]
    added = sum(lora.rank * sum(layer.weight.shape) for layer in layers)
    return Sizes(every + added, added, teachers, adapters=len(layers))


def bytes_of(recipe: Recipe, sizes: Sizes, *, ranks: int, zero_stage: int) -> dict[str, int]:
    """Bytes on each of R ranks, by what holds them; activations, which grow with token_budget, are not among them.

    With P weights of which T train, in b bytes each: P b, T · 4 of gradient, T · (12, or 8 in fp32) of masters and
    Adam's averages. ZeRO-1 shares the last among the ranks, ZeRO-2 the gradient too, ZeRO-3 all. The teacher takes
    its b a weight, shared with `teacher.shard: zero3`; an engine on a CPU the student's once more, over
    `rollout.tensor_parallel`, and its cache. On a GPU the engine sleeps while the trainer works.
    """
    width = DTYPES[recipe.precision].itemsize
    weights, gradient, states = (ranks if zero_stage >= least else 1 for least in (3, 2, 1))
    held = {
        "student": sizes.student * width // weights,
        "its gradient": sizes.trained * 4 // gradient,
        "optimizer": sizes.trained * MASTER_AND_ADAM[recipe.precision] // states,
        "teacher": sizes.teacher * width // (ranks if recipe.teacher.shard == "zero3" else 1),
        "the loss head": recipe.tile_mib << 20,
    }
    rollout = recipe.rollout
    if rollout.type == "recorded" or torch.cuda.is_available():
        return held
    merged = sizes.student - (sizes.trained if sizes.adapters else 0)
    held["engine"] = merged * width // rollout.tensor_parallel
    if engine_type(rollout) == "vllm":
        held["its cache"] = rollout.kv_cache_mib << 20
    return held


def needed(recipe: Recipe, *, ranks: int, zero_stage: int) -> list[str]:
    """What trains, and what a rank holds, a line each for the user."""
    sizes = sizes_of(recipe)
    held = bytes_of(recipe, sizes, ranks=ranks, zero_stage=zero_stage)
    parts = ", ".join(f"{name} {size / GIB:.2f}" for name, size in held.items())
    return [sizes.words, f"a rank holds at least {sum(held.values()) / GIB:.1f} GiB ({parts}), and activations"]
