"""Ranks that share a head by vocabulary: what `opd/head/shard.py` asks of them, over a process group."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from opd.head.pay import Pay
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


class OwnRows:
    """The rows of a rank whose heads are whole: it meets no other, and everything here is the identity."""

    def gather(self, tensor: Tensor) -> Tensor:
        """Every row that the rank's heads go over."""
        return tensor

    def gather_all(self, columns: dict[str, Tensor]) -> dict[str, Tensor]:
        """The same of each column."""
        return columns

    def gather_pay(self, pay: Pay) -> Pay:
        """The same of what rows pay."""
        return pay

    def own(self, columns: dict[str, Tensor]) -> dict[str, Tensor]:
        """Of gathered columns, the rank's own rows."""
        return columns

    def share(self, loss: Tensor) -> Tensor:
        """What the rank contributes to the step's loss, and to its gradient: ranks' shares add up to both."""
        return loss


@dataclass(frozen=True)
class AllRows(OwnRows):
    """The rows of all ranks, one rank's after another's: each goes over all with its part of the vocabulary.

    sizes: rows of each rank. One collective to make it and one a gathered tensor, however many rows there are; all of
    them in the forward pass.
    """

    sizes: list[int]
    rank: int
    group: Any = None

    @classmethod
    def of(cls, rows: int, device: torch.device, group: Any = None) -> AllRows:
        """Where this rank has so many; collective."""
        counts = torch.empty(dist.get_world_size(group), 1, dtype=torch.long, device=device)
        dist.all_gather(list(counts.unbind()), torch.tensor([rows], device=device), group=group)
        return cls(counts.flatten().tolist(), dist.get_rank(group), group)

    @property
    def place(self) -> slice:
        """Where one's own rows stand."""
        start = sum(self.sizes[: self.rank])
        return slice(start, start + self.sizes[self.rank])

    def gather(self, tensor: Tensor) -> Tensor:
        """Every rank's rows. Backward takes one's own rows of a gradient that the head has summed over all parts."""
        return _Gather.apply(tensor, self)

    def gather_all(self, columns: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: self.gather(columns[name]) for name in sorted(columns)}

    def gather_pay(self, pay: Pay) -> Pay:
        columns = {field.name: getattr(pay, field.name) for field in fields(pay)}
        return replace(pay, **self.gather_all({k: v for k, v in columns.items() if isinstance(v, Tensor)}))

    def own(self, columns: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: column[self.place].clone() for name, column in columns.items()}

    def share(self, loss: Tensor) -> Tensor:
        """1/R of the loss, which all ranks hold; its gradient whole.

        For a rank's gradient is of its own rows' states and of its own part of the weights: no two ranks' overlap.
        """
        return _Share.apply(loss, len(self.sizes))


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor: Tensor, rows: AllRows) -> Tensor:
        ctx.place, most = rows.place, max(rows.sizes)
        padded = torch.nn.functional.pad(tensor, [0, 0] * (tensor.ndim - 1) + [0, most - len(tensor)])
        every = tensor.new_empty(len(rows.sizes), *padded.shape)
        dist.all_gather(list(every.unbind()), padded.contiguous(), group=rows.group)
        return torch.cat([part[:size] for part, size in zip(every, rows.sizes, strict=True)])

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return grad[ctx.place], None


class _Share(torch.autograd.Function):
    @staticmethod
    def forward(ctx, loss: Tensor, ranks: int) -> Tensor:
        return loss / ranks

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None
