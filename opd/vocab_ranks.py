"""Ranks that share a head by vocabulary: what `opd/head/shard.py` asks of them, over a process group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from opd.head.shard import VocabShard


@dataclass(frozen=True)
class RankShard(VocabShard):
    """A shard on each rank of a process group, in order of rank."""

    group: Any = None

    @classmethod
    def of_rank(cls, vocabulary: int, group: Any = None) -> RankShard:
        """Equal parts; the first ones take what is left over. Raises ValueError for fewer outcomes than ranks."""
        ranks, rank = dist.get_world_size(group), dist.get_rank(group)
        if vocabulary < ranks:
            raise ValueError(f"{vocabulary} outcomes can't be cut for {ranks} ranks; give each at least one")
        size, more = divmod(vocabulary, ranks)
        start = rank * size + min(rank, more)
        return cls(start, start + size + (rank < more), vocabulary, size + (more > 0), group)

    def sum(self, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        dist.all_reduce(total, group=self.group)
        return total

    def gather(self, tensor: Tensor) -> Tensor:
        parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size(self.group))]
        dist.all_gather(parts, tensor.contiguous(), group=self.group)
        return torch.stack(parts)


@torch.no_grad()
def rows_of_all(tensor: Tensor, group: Any = None) -> tuple[Tensor, slice]:
    """Every rank's rows one after another, and where one's own stand; two collectives, however many rows each has."""
    ranks, rank = dist.get_world_size(group), dist.get_rank(group)
    counts = [torch.zeros(1, dtype=torch.long, device=tensor.device) for _ in range(ranks)]
    dist.all_gather(counts, torch.tensor([len(tensor)], device=tensor.device), group=group)
    sizes = [int(count) for count in counts]
    padded = tensor.new_zeros(max(sizes), *tensor.shape[1:])
    padded[: len(tensor)] = tensor
    parts = [torch.empty_like(padded) for _ in range(ranks)]
    dist.all_gather(parts, padded, group=group)
    start = sum(sizes[:rank])
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)]), slice(start, start + sizes[rank])
