"""Ranks that share sequences (Ulysses sequence parallelism, by DeepSpeed): each holds a piece of every one.

All layers but attention work token by token, so a rank runs them on its piece alone. For attention an all-to-all gives
each rank all tokens in its part of the heads, and a second one gives the tokens back (arXiv 2309.14509).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from opd.config import Recipe
from opd.errors import RecipeError
from opd.model_spec import ModelSettings
from opd.models import of_layers, rope_types, text_config

Attention = Callable[..., tuple[Tensor, Any]]
"""transformers' interface: (module, q [S, heads, W, d], k, v, mask, …) → ([S, W, heads, d], weights or None)."""


def share_attention(model: PreTrainedModel, group: Any) -> None:
    """From here on the model reads pieces of sequences: one on each rank of the group, of equal width, in rank order.

    Of a micro-batch of T tokens each of P ranks computes what T / P tokens take: all but attention on its own T / P,
    and attention on all T in 1 / P of the heads. It keeps T (a + h) / P for the backward pass, a what one rank keeps of
    a token, and h its attention's output, there before the exchange and after it. Where P is above the number of
    key-value heads these are repeated, and a rank has one of them. Other models of the process stay as they are.
    """
    name = model.config._attn_implementation
    core = ALL_ATTENTION_FUNCTIONS[name]
    if not hasattr(core, "for_modules_alone"):
        ALL_ATTENTION_FUNCTIONS.register(name, _sharing(core))
    for module in model.modules():
        module.sequence_group = group


def pieces_read(model: nn.Module) -> int:
    """Into how many pieces the sequences are cut that the model, or a module of it, reads; 1: it reads them whole."""
    group = getattr(model, "sequence_group", None)
    return 1 if group is None else group.size()


def check_shared_sequences(recipe: Recipe, spec: ModelSettings, config: Any) -> None:
    """RecipeError if the model can't be read by ranks that share its sequences."""
    size = recipe.sequence_parallel_size
    if size > 1 and (recipe.teacher.shard == "zero3" or recipe.teacher.offload):
        raise RecipeError(
            f"sequence_parallel_size {size} does not go together with teacher.shard: zero3 or teacher.offload yet; "
            "leave out one of them"
        )
    if size > 1 and (obstacle := _sequence_obstacle(recipe, spec, text_config(config))):
        raise RecipeError(f"sequence_parallel_size {size} and {spec.model!r}: {obstacle}")


def _sharing(core: Attention) -> Attention:
    """The kernel, over pieces where its module has a group.

    It keeps its name: transformers asks for that in many places, flash-attention's own among them. The mask, of a piece
    alone, goes: causality, windows and packed rows follow from the kernel's own arguments and all pieces' positions.
    """

    def attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **more: Any) -> Any:
        if (group := getattr(module, "sequence_group", None)) is None:
            return core(module, query, key, value, mask, **more)
        rows, heads, _, size = query.shape
        return _exchange(core, group, rows, heads, key.shape[1], size)(module, query, key, value, None, **more)

    attention.for_modules_alone = core
    return attention


@lru_cache(maxsize=256)
def _exchange(core: Attention, group: Any, rows: int, heads: int, kv_heads: int, size: int) -> nn.Module:
    from deepspeed.runtime.sequence_parallel.ulysses_sp import UlyssesSPAttentionHF

    return UlyssesSPAttentionHF(
        attn=core,
        batch_size=rows,
        attn_head_count=heads,
        attn_head_size=size,
        kv_head_count=kv_heads,
        num_hidden_layers=1,
        process_group=group,
        seq_length_is_variable=True,
    )


def _sequence_obstacle(recipe: Recipe, spec: ModelSettings, config: Any) -> str | None:
    """What is in the way, and the way out."""
    size, kernel = recipe.sequence_parallel_size, spec.attention
    heads = getattr(config, "num_attention_heads", 0)
    if not heads or heads % size:
        return f"{heads} attention heads can't be shared equally; take a divisor of {heads}"
    if keys := next((n for n in of_layers(config, "num_key_value_heads") if n % size and size % n), 0):
        return f"{keys} key-value heads are neither a multiple nor a divisor of it; take one that divides {keys}"
    if kernel == "eager":
        return "attention: eager needs a mask of the whole sequence; set attention to sdpa or flash_attention_2"
    if kernel == "sdpa" and recipe.student.attention == "flash_attention_2":
        return "the student packs rollouts in a row, and sdpa has no mask that parts them; give both one kernel"
    if other := sorted(set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}):
        return f"its layers of type {', '.join(other)} go along the sequence beside attention; set it to 1"
    if kernel == "sdpa" and (window := _window(config)) and window < recipe.token_budget:
        return (
            f"sdpa has no mask for its window of {window} tokens; set attention: flash_attention_2, "
            f"or token_budget to {window} or less"
        )
    if stretched := sorted(rope_types(config) & {"dynamic", "longrope"}):
        return f"its rotary positions ({stretched[0]}) change with the length that a rank sees; set it to 1"
    return None


def _window(config: Any) -> int | None:
    """The sliding window of some layer, if there is one."""
    types = getattr(config, "layer_types", None)
    slides = types is None or "sliding_attention" in types
    return getattr(config, "sliding_window", None) if slides else None
