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
