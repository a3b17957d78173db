"""Ranks that share a head by vocabulary: what `opd/head/shard.py` asks of them, over the process group."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
import torch.distributed as dist
from torch import Tensor

from opd.head.pay import Pay
from opd.head.shard import VocabShard
from opd.head.weights import HiddenStates


@dataclass(frozen=True)
class RankShard(VocabShard):
    """A shard on each rank of the process group, in order of rank.

    rows: whose states are where; set for each micro-batch before the head runs.
    """

    rows: AllRows | None = None

    @classmethod
    def of_rank(cls, vocabulary: int) -> RankShard:
        """Equal parts; the first ones take what is left over. Raises ValueError for fewer outcomes than ranks."""
        ranks, rank = dist.get_world_size(), dist.get_rank()
        if vocabulary < ranks:
            raise ValueError(f"{vocabulary} outcomes can't be cut for {ranks} ranks; give each at least one")
        size, more = divmod(vocabulary, ranks)
        start = rank * size + min(rank, more)
        return cls(start, start + size + (rank < more), vocabulary, size + (more > 0))

    def sum(self, tensor: Tensor) -> Tensor:
        total = tensor.clone(memory_format=torch.contiguous_format)  # NCCL takes no other
        dist.all_reduce(total)
        return total

    def gather(self, tensor: Tensor) -> Tensor:
        return _gathered(tensor)

    def slab(self, states: HiddenStates, rows_n: Tensor) -> HiddenStates:
        slab_nH = states.hidden_NH.new_zeros(len(rows_n), states.hidden_NH.shape[1])
        there, here = self.rows.meet(rows_n)
        slab_nH[there] = states.hidden_NH[here]
        dist.all_reduce(slab_nH)
        return replace(states, hidden_NH=slab_nH)

    def add_rows(self, sum_NH: Tensor, rows_n: Tensor, grad_nH: Tensor) -> None:
        there, here = self.rows.meet(rows_n)
        sum_NH[here] += self.sum(grad_nH)[there]


def _gathered(tensor: Tensor) -> Tensor:
    """[R, …]: every rank's, in order of rank."""
    parts = tensor.new_empty(dist.get_world_size(), *tensor.shape)
    dist.all_gather(list(parts.unbind()), tensor.contiguous())
    return parts


class OwnRows:
    """The rows of a rank whose heads are whole: it meets no other, and everything here is the identity."""

    def gather(self, columns: dict[str, Tensor]) -> dict[str, Tensor]:
        """Of each column, all rows that the rank's heads go over."""
        return columns

    def own(self, columns: dict[str, Tensor]) -> dict[str, Tensor]:
        """Of gathered columns, the rank's own rows."""
        return columns

    def share(self, loss: Tensor) -> Tensor:
        """What the rank contributes to the step's loss, and to its gradient: ranks' shares add up to both."""
        return loss

    def gather_pay(self, pay: Pay) -> Pay:
        """What all rows pay that the rank's heads go over."""
        columns = {field.name: getattr(pay, field.name) for field in fields(pay)}
        return replace(pay, **self.gather({k: v for k, v in columns.items() if isinstance(v, Tensor)}))


@dataclass(frozen=True)
class AllRows(OwnRows):
    """The rows of all ranks, one rank's after another's: each goes over all of them with its part of the vocabulary.

    sizes: rows of each rank. Columns of the token table are gathered whole, by one collective each, and states a slab
    at a time (`RankShard.slab`).
    """

    sizes: tuple[int, ...]
    rank: int

    @classmethod
    def of(cls, rows: int, device: torch.device) -> AllRows:
        """Where this rank has so many; collective."""
        sizes = _gathered(torch.tensor(rows, device=device)).tolist()
        return cls(tuple(sizes), dist.get_rank())

    @property
    def place(self) -> slice:
        """Where one's own rows stand."""
        start = sum(self.sizes[: self.rank])
        return slice(start, start + self.sizes[self.rank])

    def meet(self, rows_n: Tensor) -> tuple[Tensor, Tensor]:
        """(places in `rows_n`, one's own rows that stand there)."""
        there = ((rows_n >= self.place.start) & (rows_n < self.place.stop)).nonzero().squeeze(-1)
        return there, rows_n[there] - self.place.start

    def gather(self, columns: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: self._whole(columns[name]) for name in sorted(columns)}

    def own(self, columns: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: column[self.place].clone() for name, column in columns.items()}

    def share(self, loss: Tensor) -> Tensor:
        """1/R of the loss, which all ranks hold; its gradient whole.

        For a rank's gradient is of its own rows' states and of its own part of the weights: no two ranks' overlap.
        """
        return _Share.apply(loss, len(self.sizes))

    def _whole(self, column: Tensor) -> Tensor:
        padded = column.new_zeros(max(self.sizes), *column.shape[1:])
        padded[: len(column)] = column
        parts = _gathered(padded)
        return torch.cat([part[:size] for part, size in zip(parts, self.sizes, strict=True)])


class _Share(torch.autograd.Function):
    @staticmethod
    def forward(ctx, loss: Tensor, ranks: int) -> Tensor:
        return loss / ranks

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None
