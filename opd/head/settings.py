"""What every pass of the head needs to know beside its rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from opd.head.cost import TILE_MIB
from opd.head.weights import working_dtype

LEAST = -1e30
"""What stands for a logit of −inf: its outcome has probability 0, and 0 · LEAST is 0 where 0 · −inf is not a number."""
HeadPrecision = Literal["exact", "fast"]
HeadKernels = Literal["auto", "fused", "plain"]


@dataclass(frozen=True)
class HeadSettings:
    """temperature: of both models in objectives and statistics. sampler_temperature: the rollouts'.

    candidates: K of the student's top K, where an objective asks for them. stop: token ids that end a turn;
    `merge_stop` makes them one outcome (arXiv 2609.20511). tile_bytes: working memory; of a result it changes the
    rounding alone.
    precision: of logits from 16-bit weights, strip by strip; exact keeps float32 products (on a CPU the factors are
    float32 too, on a GPU ∂loss/∂logits is rounded before its products), fast rounds every product to 16 bits. Terms
    that need whole rows are always exact. kernels: of elementwise work, strip by strip; fused by torch.compile or
    plain torch; auto fuses on CUDA.
    """

    temperature: float = 1.0
    sampler_temperature: float = 1.0
    candidates: int = 0
    stop: tuple[int, ...] = ()
    merge_stop: bool = False
    tile_bytes: int = TILE_MIB["cpu"] << 20
    precision: HeadPrecision = "exact"
    kernels: HeadKernels = "auto"

    def product_dtype(self, weights: torch.dtype) -> torch.dtype:
        """Of the products with such weights."""
        return weights if self.precision == "fast" or weights == torch.float64 else torch.float32

    def size_of(self, hidden_NH: Tensor) -> dict[str, Any]:
        """What the cut of strips of such states' logits depends on, by `cost`'s names."""
        itemsize = working_dtype(hidden_NH.dtype).itemsize
        return {"itemsize": itemsize, "tile_bytes": self.tile_bytes, "device": hidden_NH.device.type}

    def check_trainable(self, weight_VH: Tensor) -> None:
        """ValueError where ∂loss/∂logits, over a step's count, is cast to float16: below 6e-8 that has no number."""
        is_cast = self.precision == "fast" or weight_VH.device.type == "cuda"
        if is_cast and weight_VH.dtype == torch.float16:
            raise ValueError("a float16 head's gradient would vanish in 'fast' and on a GPU; use bfloat16")

    def fuses(self, weight_VH: Tensor) -> bool:
        """Whether elementwise work on products with such weights is fused; in float64 it never is."""
        is_asked = self.kernels == "fused" or (self.kernels == "auto" and weight_VH.device.type == "cuda")
        return is_asked and weight_VH.dtype != torch.float64

    @property
    def merges(self) -> bool:
        """Whether several end tokens are one outcome."""
        return self.merge_stop and len(self.stop) > 1

    def outcome_of(self, token_id: Tensor) -> Tensor:
        """The outcome that a token belongs to: itself, or the stop class's first token for any of its tokens."""
        if not self.merges:
            return token_id
        stop = torch.tensor(self.stop, device=token_id.device)
        return torch.where(torch.isin(token_id, stop), stop[0], token_id)


def ruled_out(value: Tensor) -> Tensor:
    """The value, or inf where LEAST took part in it: one model does what the other rules out."""
    return value.masked_fill(value > -LEAST * 1e-15, torch.inf)
