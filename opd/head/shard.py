"""A head cut by vocabulary: each of R ranks holds V / R rows of it and goes over all rows of all ranks.

Collectives enter the head by this seam alone, as many on every rank, whatever the data. Alone, every one of them is the
identity; `RankShard` in opd/vocab_ranks.py is the other form.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from opd.head.weights import HeadWeights


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


def whole_of(head: HeadWeights) -> VocabShard:
    """The one shard of a head that is whole."""
    return VocabShard(0, head.vocabulary, head.vocabulary, head.vocabulary)
