"""A head cut by vocabulary: each of R ranks holds V / R rows of it and goes over all tokens of all ranks.

Collectives enter the head by this seam alone, as many on every rank, whatever the data. Alone, every one of them is the
identity; `RankShard` in opd/vocab_ranks.py is the other form.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from opd.head.weights import HeadWeights, HiddenStates


@dataclass(frozen=True)
class VocabShard:
    """Outcomes start … stop of V; the widest shard has `widest`. This one is alone; it holds all of them."""

    start: int
    stop: int
    vocabulary: int
    widest: int

    def sum(self, tensor: Tensor) -> Tensor:
        """Elementwise over the shards; the same on each."""
        return tensor

    def gather(self, tensor: Tensor) -> Tensor:
        """[R, …]: every shard's, in order of their outcomes."""
        return tensor[None]

    def slab(self, states: HiddenStates, rows_n: Int[Tensor, " n"]) -> HiddenStates:
        """The states of those of all tokens; here, every shard has the states of them all."""
        return states.rows(rows_n)

    def add_rows(self, sum_NH: Float[Tensor, "N H"], rows_n: Int[Tensor, " n"], grad_nH: Float[Tensor, "n H"]) -> None:
        """Add those tokens' gradient, all shards' together, where their states are."""
        sum_NH[rows_n] += self.sum(grad_nH)


def whole_of(head: HeadWeights) -> VocabShard:
    """The one shard of a head that is whole."""
    return VocabShard(0, head.vocabulary, head.vocabulary, head.vocabulary)
