"""Which kernel computes a model's attention: what `attention: auto` takes here, and which choices are refused."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch

from opd.config import Recipe
from opd.errors import ModelError
from opd.model_spec import ModelSettings
from opd.models import caps_attention, carries_state, empty_model

FLASH = "flash_attention_2"


def settle_attention(recipe: Recipe, student: Any, teacher: Any) -> Recipe:
    """The recipe with a kernel in place of each `auto`; student, teacher: the models' configurations.

    flash_attention_2 where it can be (CUDA, flash_attn installed, 16-bit weights, both architectures know it, no layer
    carries a state), for both models or neither; else sdpa, or eager for a model whose attention sdpa computes wrongly.
    """
    others = {spec.attention for spec in (recipe.student, recipe.teacher)} - {"auto", FLASH}
    flash = not others and _knows_flash(recipe, student) and _knows_flash(recipe, teacher)

    def settled(spec: ModelSettings, config: Any) -> ModelSettings:
        plain = "eager" if caps_attention(config) else "sdpa"
        kernel = spec.attention if spec.attention != "auto" else FLASH if flash else plain
        return spec.model_copy(update={"attention": kernel})

    return recipe.model_copy(
        update={"student": settled(recipe.student, student), "teacher": settled(recipe.teacher, teacher)}
    )


def _knows_flash(recipe: Recipe, config: Any) -> bool:
    return (
        torch.cuda.is_available()
        and importlib.util.find_spec("flash_attn") is not None
        and recipe.precision == "bf16"
        and not carries_state(config)
        and empty_model(config)._supports_flash_attn
    )


def check_attention(spec: ModelSettings, config: Any) -> None:
    """ModelError if the attention kernel would leave out the cap that the model, and its engine, put on scores."""
    if spec.attention == "sdpa" and caps_attention(config):
        raise ModelError(
            f"{spec.model!r} caps its attention scores (attn_logit_softcapping), and attention: sdpa would leave that "
            "out; set attention to eager or flash_attention_2 for this model"
        )


def check_packing(recipe: Recipe, spec: ModelSettings, config: Any) -> None:
    """ModelError if packed rows would hand a linear-attention layer's state on from one rollout to the next."""
    if recipe.student.attention == FLASH and carries_state(config):
        raise ModelError(
            f"{spec.model!r} has linear-attention layers, whose state would run on from rollout to rollout in the one "
            "row that student.attention: flash_attention_2 packs; set student.attention to sdpa"
        )
