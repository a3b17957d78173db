"""Where the head's gradient adds up: hidden states, a middle layer's, weight and bias."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from opd.head.cost import STRIP_COLUMNS
from opd.head.shard import VocabShard
from opd.head.strips import factor, multiply
from opd.head.weights import HiddenStates, working_dtype


class Gradients:
    """The sums, in the working dtype but where `expect` says otherwise; a part that is not wanted is None.

    wants: of hidden states, middle layer, weight and bias. Those of the weights are of the shard's part alone. rounds:
    whether the weight's may be rounded before it is scaled, where one product makes it.
    """

    def __init__(
        self, student: HiddenStates, weak_NH: Tensor, wants: tuple[bool, ...], shard: VocabShard, rounds: bool = False
    ) -> None:
        self.student, self.head, self.shard, self.rounds = student, student.head, shard, rounds
        self.dtype = dtype = working_dtype(student.head.weight_VH.dtype)
        hidden, weak, weight, bias = wants
        self.hidden_NH = torch.zeros_like(student.hidden_NH, dtype=dtype) if hidden else None
        self.weak_NH = torch.zeros_like(weak_NH, dtype=dtype) if weak else None
        self.weight_VH = torch.empty_like(self.head.weight_VH, dtype=dtype) if weight else None
        self.bias_V = torch.zeros_like(self.head.bias_V, dtype=dtype) if bias else None
        self.is_empty = True
        self._part: Tensor | None = None

    def expect(self, slabs: int) -> None:
        """Before the first of so many slabs: of one alone, no sum needs a wider dtype than its product."""
        if self.rounds and slabs == 1 and self.weight_VH is not None:
            self.weight_VH = torch.empty_like(self.head.weight_VH)

    def add_rows(self, rows_n: Int[Tensor, " n"], grad_nV: Float[Tensor, "n V"], weak_NH: Tensor | None = None) -> None:
        """∂loss/∂(h Wᵀ + b) of whole rows; `weak_NH` where h is the middle layer's."""
        states_NH = self.student.hidden_NH if weak_NH is None else weak_NH
        of_states_NH = self.hidden_NH if weak_NH is None else self.weak_NH
        slab = Slab(self, rows_n, states_NH[rows_n].to(self.dtype), of_states_NH)
        width = STRIP_COLUMNS[grad_nV.device.type]
        for start in range(0, self.head.vocabulary, width):
            columns = slice(start, min(start + width, self.head.vocabulary))
            slab.add(columns, grad_nV[:, columns].T)
        slab.close()

    def add_product_(self, sum_ac: Tensor, left_ab: Tensor, right_bc: Tensor, *, is_fresh: bool = False) -> None:
        """sum += left · right, or = where `is_fresh`; products in the dtype of the gradient of logits."""
        dtype = right_bc.dtype
        if sum_ac.dtype == dtype and sum_ac.device.type == "cpu":
            sum_ac.addmm_(factor(left_ab, dtype), factor(right_bc, dtype), beta=int(not is_fresh))
            return
        part_ac = self._part_like(sum_ac, dtype if sum_ac.device.type == "cpu" else sum_ac.dtype)
        multiply(left_ab, right_bc, part_ac)
        sum_ac.copy_(part_ac) if is_fresh else sum_ac.add_(part_ac)

    def _part_like(self, sum_ac: Tensor, dtype: torch.dtype) -> Tensor:
        """Memory for a product, the same each time: fresh pages cost a CPU more than what is written to them."""
        if self._part is None or self._part.dtype != dtype or self._part.numel() < sum_ac.numel():
            self._part = sum_ac.new_empty(sum_ac.numel(), dtype=dtype)
        return self._part[: sum_ac.numel()].view(sum_ac.shape)

    def collected(self) -> list[Tensor | None]:
        """Every part in the order of `wants`, as it was summed: scale it, then `narrowed_` it."""
        if self.is_empty and self.weight_VH is not None:
            self.weight_VH.zero_()
        return [self.hidden_NH, self.weak_NH, self.weight_VH, self.bias_V]


class Slab:
    """The gradient of some rows, strip by strip over all the vocabulary; `close` adds it to the whole.

    of_hidden_NH: where the states' gradient goes. hidden_nH: these rows' states in the dtype of the products.
    """

    def __init__(self, whole: Gradients, rows_n: Int[Tensor, " n"], hidden_nH: Tensor, of_hidden_NH: Tensor | None):
        self.whole, self.rows_n, self.hidden_nH, self.of_hidden_NH = whole, rows_n, hidden_nH, of_hidden_NH
        self.grad_Hn: Tensor | None = None
        if of_hidden_NH is not None:
            self.grad_Hn = of_hidden_NH.new_zeros(of_hidden_NH.shape[1], len(rows_n))

    def add(self, columns: slice, grad_vn: Float[Tensor, "v n"]) -> None:
        """∂loss/∂(h Wᵀ + b) of those columns, each once."""
        if self.whole.bias_V is not None:
            self.whole.bias_V[columns] += grad_vn.sum(-1)
        grad_vn = grad_vn.to(self.hidden_nH.dtype)
        if self.grad_Hn is not None:
            self.whole.add_product_(self.grad_Hn, self.whole.head.weight_VH[columns].T, grad_vn)
        if self.whole.weight_VH is not None:
            is_fresh = self.whole.is_empty
            self.whole.add_product_(self.whole.weight_VH[columns], grad_vn, self.hidden_nH, is_fresh=is_fresh)

    def add_tokens(self, ids: list[int], grad_ns: Float[Tensor, "n s"]) -> None:
        """The same of a few tokens whose columns were left at 0."""
        if self.whole.bias_V is not None:
            self.whole.bias_V[ids] += grad_ns.sum(0)
        if self.grad_Hn is not None:
            self.grad_Hn += self.whole.head.weight_VH[ids].to(grad_ns.dtype).T @ grad_ns.T
        if self.whole.weight_VH is not None:
            self.whole.weight_VH[ids] += grad_ns.T @ self.hidden_nH.to(grad_ns.dtype)

    def close(self) -> None:
        """The rows are done."""
        if self.grad_Hn is not None:
            self.whole.shard.add_rows(self.of_hidden_NH, self.rows_n, self.grad_Hn.T)
        self.whole.is_empty = False


def narrowed_(sum_: Tensor, dtype: torch.dtype) -> Tensor:
    """The sum in a narrower dtype, in its own memory: a copy beside it would be the head's largest tensor but one.

    The result is a view that holds on to all of the sum's memory.
    """
    if sum_.dtype == dtype:
        return sum_
    narrow = sum_.view(-1).view(dtype)[: sum_.numel()].view_as(sum_)
    for start in range(0, len(sum_), height := STRIP_COLUMNS[sum_.device.type]):
        rows = slice(start, start + height)
        narrow[rows] = sum_[rows].to(dtype)  # a copy first: both share memory, and a strip may overlap itself
    return narrow
