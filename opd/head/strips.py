"""Both models' logits over some rows, a strip of the vocabulary at a time: made anew in every sweep, or kept.

A strip lies in memory as [v, n], so that a matrix product over few rows still runs at full speed; elementwise work goes
over it in blocks that stay in the cache, seen as [n, b].
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from opd.head.cost import BLOCKS_A_STRIP, strip_columns, strip_elements
from opd.head.settings import LEAST, HeadSettings
from opd.head.shard import VocabShard
from opd.head.weights import HeadWeights, HiddenStates, working_dtype


@dataclass(frozen=True)
class Strip:
    """Logits of columns start … start + v by model, [v, n] each."""

    start: int
    logits: dict[str, Float[Tensor, "v n"]]
    block_columns: int

    @property
    def student_vn(self) -> Float[Tensor, "v n"]:
        """The student's."""
        return self.logits["student"]

    def blocks(self) -> Iterator[dict[str, Float[Tensor, "n b"]]]:
        """Logits of each model as [n, b], block by block; what is written there stands in the strip."""
        for start in range(0, len(self.student_vn), self.block_columns):
            columns = slice(start, start + self.block_columns)
            yield {who: logits_vn[columns].T for who, logits_vn in self.logits.items()}

    def holds(self, id_NK: Tensor) -> tuple[Tensor, Tensor]:
        """(place within the strip, whether it is there) of ids; the place is always valid."""
        place = id_NK - self.start
        return place.clamp(0, len(self.student_vn) - 1), (place >= 0) & (place < len(self.student_vn))


Memory = dict[str, Tensor]
"""Where the products of each model are kept: one slab of rows after another in the same pages."""


class Strips:
    """Sweeps over the strips of n rows.

    keep: memory for all products, which are then made in the first sweep and read in all later ones; filled with what
    it lacks, so that the first slab must be the largest. None: products are made anew in each sweep.
    """

    def __init__(
        self,
        student: HiddenStates,
        teacher: HiddenStates | None,
        settings: HeadSettings,
        shard: VocabShard,
        keep: Memory | None = None,
    ) -> None:
        size = settings.size_of(student.hidden_NH)
        self.temperature, self.shard, self.start = settings.temperature, shard, student.head.start
        self.vocabulary, self.columns = student.head.vocabulary, strip_columns(len(student), **size)
        self.fuses = settings.fuses(student.head.weight_VH)
        blocks = 1 if self.fuses and student.hidden_NH.device.type == "cuda" else BLOCKS_A_STRIP
        self.block_columns = max(1, strip_elements(**size) // blocks // max(1, len(student)))
        states = {"student": student} | ({} if teacher is None else {"teacher": teacher})
        check(states, settings, shard)
        self.models = {who: Logits(who, its, settings, self.columns, shard, keep) for who, its in states.items()}

    def __iter__(self) -> Iterator[Strip]:
        """The strips in order, every end token on its own."""
        for start in range(0, self.vocabulary, self.columns):
            logits = {who: model.strip(start) for who, model in self.models.items()}
            yield Strip(self.start + start, logits, self.block_columns)

    def rows_of(self, strip: Strip) -> slice:
        """The strip's rows of the head's weights."""
        start = strip.start - self.start
        return slice(start, start + len(strip.student_vn))

    def merge(self, strip: Strip) -> Strip:
        """The strip with its end tokens as one outcome where the settings say so; in place."""
        for who, model in self.models.items():
            model.merge(strip.start, strip.logits[who])
        return strip


def check(states: dict[str, HiddenStates], settings: HeadSettings, shard: VocabShard) -> None:
    """ValueError where heads do not hold the same tokens, or an end token is none of the vocabulary."""
    held_by = {who: (its.head.start, its.head.start + its.head.vocabulary) for who, its in states.items()}
    if set(held_by.values()) != {(shard.start, shard.stop)}:
        raise ValueError(f"heads hold the tokens {held_by} and should hold {shard.start} to {shard.stop}; align them")
    if foreign := [token for token in settings.stop if not 0 <= token < shard.vocabulary]:
        raise ValueError(f"end tokens {foreign} are none of the heads' {shard.vocabulary} tokens; leave them out")


class Logits:
    """One model's strips over n rows, and its end tokens' logits, which are needed before their strips come."""

    def __init__(
        self,
        who: str,
        states: HiddenStates,
        settings: HeadSettings,
        columns: int,
        shard: VocabShard,
        keep: Memory | None,
    ) -> None:
        self.head, self.settings, self.columns = states.head, settings, columns
        weight_VH = self.head.weight_VH
        self.dtype = working_dtype(weight_VH.dtype)
        self.product_dtype = settings.product_dtype(weight_VH.dtype)
        self.hidden_nH = factor(states.hidden_NH.to(weight_VH.dtype), self.product_dtype)
        memory, self._keeps, self._made = {} if keep is None else keep, keep is not None, 0
        height = self.head.vocabulary if self._keeps else min(columns, self.head.vocabulary)
        size = height * len(self.hidden_nH)
        if who not in memory:
            memory[who] = weight_VH.new_empty(size, dtype=self.product_dtype)
        self._products_vn = memory[who][:size].view(height, len(self.hidden_nH))
        is_bent = self.head.bias_V is not None or self.head.bends
        # never in float16, which has no LEAST
        self.is_raw = self.product_dtype == torch.bfloat16 and settings.fuses(weight_VH) and not is_bent
        self._wide_vn = self.hidden_nH.new_empty(0, dtype=self.dtype)
        self.stop_ns = shard.sum(self._stop_logits())
        self.stop_n = settings.temperature * (self.stop_ns / settings.temperature).logsumexp(-1)
        if self.is_raw and settings.merges:  # it will stand among products of that dtype
            self.stop_n = self.stop_n.to(self.product_dtype).to(self.dtype)

    def strip(self, start: int) -> Float[Tensor, "v n"]:
        """Logits of the strip that begins there; the caller's to write to, once, until the next is asked for.

        In the working dtype, or products as they are where fused work takes them so.
        """
        columns = slice(start, min(start + self.columns, self.head.vocabulary))
        product_vn = self._products_vn[columns] if self._keeps else self._products_vn[: columns.stop - start]
        is_new = not self._keeps or columns.stop > self._made
        if is_new:
            multiply(self.head.weight_VH[columns], self.hidden_nH.T, product_vn)
            self._made = columns.stop
        if self.product_dtype == self.dtype:
            return self._finish(product_vn, columns) if is_new else product_vn
        return product_vn if self.is_raw else self._finish(self._widened(product_vn), columns)

    def _widened(self, product_vn: Float[Tensor, "v n"]) -> Float[Tensor, "v n"]:
        """In the working dtype; in the same memory each time, because fresh pages cost more than what is written."""
        if not len(self._wide_vn):
            self._wide_vn = product_vn.new_empty(self._products_vn[: self.columns].shape, dtype=self.dtype)
        return self._wide_vn[: len(product_vn)].copy_(product_vn)

    def _finish(self, logits_vn: Float[Tensor, "v n"], columns: slice | list[int]) -> Float[Tensor, "v n"]:
        """From products to logits, in place."""
        if self.head.bias_V is not None:
            logits_vn += self.head.bias_V[columns, None]
        if self.head.bends:
            logits_vn.copy_(self.head.capped(logits_vn))
        return logits_vn if self.head.bias_V is None else logits_vn.clamp_(LEAST)

    def merge(self, start: int, strip_vn: Float[Tensor, "v n"]) -> None:
        """The end tokens' class in its first column; the others can't happen."""
        if self.settings.merges:
            for place, token in enumerate(self.settings.stop):
                if start <= token < start + len(strip_vn):
                    strip_vn[token - start] = LEAST if place else self.stop_n

    def _stop_logits(self) -> Float[Tensor, "n s"]:
        """Of those that this head holds, rounded as their strips are; 0 for the others."""
        places, rows = held(self.settings.stop, self.head)
        stop_ns = self.hidden_nH.new_zeros(len(self.hidden_nH), len(self.settings.stop), dtype=self.dtype)
        if rows:
            product_sn = self.hidden_nH.new_empty(len(rows), len(self.hidden_nH), dtype=self.product_dtype)
            multiply(self.head.weight_VH[rows], self.hidden_nH.T, product_sn)
            stop_ns[:, places] = self._finish(product_sn.to(self.dtype), rows).T
        return stop_ns


def held(tokens: tuple[int, ...], head: HeadWeights) -> tuple[list[int], list[int]]:
    """(places in `tokens`, rows of the head) of those tokens that a head, or a part of one, holds."""
    pairs = [(i, token - head.start) for i, token in enumerate(tokens) if 0 <= token - head.start < head.vocabulary]
    return [i for i, _ in pairs], [row for _, row in pairs]


def factor(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A factor as the product takes it: in its dtype on the CPU; as it is on a GPU, which sums in float32 anyway."""
    return tensor.to(dtype) if tensor.device.type == "cpu" or dtype == torch.float64 else tensor


def multiply(left_ab: Tensor, right_bc: Tensor, out_ac: Tensor) -> Tensor:
    """left · right into `out`, summed in out's dtype or better."""
    left_ab, right_bc = factor(left_ab, out_ac.dtype), factor(right_bc, out_ac.dtype)
    if left_ab.dtype == right_bc.dtype == out_ac.dtype:
        return torch.mm(left_ab, right_bc, out=out_ac)
    right_bc = right_bc.to(left_ab.dtype)
    return torch.mm(left_ab, right_bc, out_dtype=out_ac.dtype, out=out_ac)
