"""Which kernel computes a model's attention: what `attention: auto` takes here, and which choices are refused."""

from __future__ import annotations

from typing import Any

import torch
from transformers.utils import is_flash_attn_2_available

from opd.config import Recipe
from opd.errors import ModelError
from opd.model_spec import ModelSettings
from opd.models import architecture, caps_attention, carries_state, of_layers, plain_kernel, text_config

FLASH = "flash_attention_2"
LARGEST_HEAD, AMPERE = 256, (8, 0)
"""What flash-attention 2 can do: columns of a head, and compute capability at least."""


def settle_attention(recipe: Recipe, student: Any, teacher: Any) -> Recipe:
    """The recipe with a kernel in place of each `auto`; student, teacher: the models' configurations.

    flash_attention_2 where it can be (an Ampere or later, flash_attn, 16-bit weights, architectures that know it, no
    layer with a state), for both models or neither; else `plain_kernel`.
    """
    others = {spec.attention for spec in (recipe.student, recipe.teacher)} - {"auto", FLASH}
    flash = not others and _knows_flash(recipe, student) and _knows_flash(recipe, teacher)

    def settled(spec: ModelSettings, config: Any) -> ModelSettings:
        if spec.attention != "auto":
            return spec
        return spec.model_copy(update={"attention": FLASH if flash else plain_kernel(config)})

    return recipe.model_copy(
        update={"student": settled(recipe.student, student), "teacher": settled(recipe.teacher, teacher)}
    )


def _knows_flash(recipe: Recipe, config: Any) -> bool:
    text = text_config(config)
    size = max(of_layers(config, "head_dim") or [text.hidden_size // text.num_attention_heads])
    if recipe.precision != "bf16" or size > LARGEST_HEAD or carries_state(config) or not is_flash_attn_2_available():
        return False
    model = architecture(config)
    takes_another = getattr(model, "_compatible_flash_implementations", None)
    return torch.cuda.get_device_capability() >= AMPERE and model._supports_flash_attn and not takes_another


def check_attention(spec: ModelSettings, config: Any) -> None:
    """ModelError if the attention kernel would leave out the cap that the model, and its engine, put on scores."""
    if spec.attention == "sdpa" and caps_attention(config):
        raise ModelError(
            f"{spec.model!r} caps its attention scores (attn_logit_softcapping), and attention: sdpa would leave that "
            "out; set attention to eager or flash_attention_2 for this model"
        )


def check_packing(recipe: Recipe, spec: ModelSettings, config: Any) -> None:
    """ModelError if packed rows would hand a layer's state on from one rollout to the next."""
    if recipe.student.attention == FLASH and carries_state(config):
        raise ModelError(
            f"{spec.model!r} has layers beside attention (linear attention, convolutions), whose state would run on "
            "from rollout to rollout in the one row that student.attention: flash_attention_2 packs; set "
            "student.attention to sdpa"
        )
