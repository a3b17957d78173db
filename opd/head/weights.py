"""What an lm_head is to the mathematics: weights, and the few things that models do to logits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from opd.head.cost import STRIP_COLUMNS


@dataclass(frozen=True)
class HeadWeights:
    """logits = cap(scale · (h Wᵀ + b)), with cap(u) = softcap · tanh(u / softcap) where a model has one.

    weight_VH [V, H] and bias_V [V] in the model's dtype. Gemma caps, Cohere multiplies and Granite divides. start: the
    first row's token, where this is a part of a head (`shard.py`).
    """

    weight_VH: Float[Tensor, "V H"]
    bias_V: Float[Tensor, " V"] | None = None
    softcap: float | None = None
    scale: float = 1.0
    start: int = 0

    @property
    def vocabulary(self) -> int:
        """V."""
        return self.weight_VH.shape[0]

    def cut(self, vocabulary: int) -> HeadWeights:
        """The same head over the first `vocabulary` tokens (views, no copy)."""
        return self.part(0, vocabulary)

    def part(self, start: int, stop: int) -> HeadWeights:
        """Its rows start … stop alone (views, no copy)."""
        bias_V = None if self.bias_V is None else self.bias_V[start:stop]
        return replace(self, weight_VH=self.weight_VH[start:stop], bias_V=bias_V, start=self.start + start)

    def copy(self, device: torch.device) -> HeadWeights:
        """The same head on `device`, in memory of its own."""
        bias_V = None if self.bias_V is None else self.bias_V.to(device, copy=True)
        return replace(self, weight_VH=self.weight_VH.to(device, copy=True), bias_V=bias_V)

    def logits(self, hidden_nH: Float[Tensor, "n H"]) -> Float[Tensor, "n V"]:
        """Logits of whole rows, multiplied and summed in float32 (float64 for float64 weights)."""
        dtype = working_dtype(self.weight_VH.dtype)
        hidden_nH, is_wide = hidden_nH.to(self.weight_VH.dtype), dtype == self.weight_VH.dtype
        with torch.autocast(hidden_nH.device.type, enabled=False):
            if is_wide:
                logits_nV = hidden_nH @ self.weight_VH.T
            elif hidden_nH.is_cuda:
                logits_nV = torch.mm(hidden_nH, self.weight_VH.T, out_dtype=dtype)
            else:
                parts = self.weight_VH.split(STRIP_COLUMNS["cpu"])
                logits_nV = torch.cat([hidden_nH.to(dtype) @ weight_vH.to(dtype).T for weight_vH in parts], -1)
        return self.capped(logits_nV if self.bias_V is None else logits_nV + self.bias_V)

    @property
    def bends(self) -> bool:
        """Whether anything is done to h Wᵀ + b."""
        return self.scale != 1.0 or self.softcap is not None

    def capped(self, logits: Tensor) -> Tensor:
        """cap(scale · x), elementwise."""
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    def cap_slope(self, logits: Tensor) -> Tensor | None:
        """cap′ where cap gives these logits; None where nothing is capped."""
        return None if self.softcap is None else 1 - (logits / self.softcap).clamp(-1, 1) ** 2

    def product_gradient(self, logits_nV: Float[Tensor, "n V"], grad_nV: Float[Tensor, "n V"]) -> Float[Tensor, "n V"]:
        """The gradient with respect to h Wᵀ + b, from the gradient with respect to the logits."""
        caps_nV = self.cap_slope(logits_nV)
        grad_nV = grad_nV if caps_nV is None else grad_nV * caps_nV
        return grad_nV if self.scale == 1.0 else grad_nV * self.scale


@dataclass(frozen=True)
class HiddenStates:
    """Last hidden states [N, H] of N positions, and the head that turns them into distributions."""

    hidden_NH: Float[Tensor, "N H"]
    head: HeadWeights

    def __len__(self) -> int:
        return self.hidden_NH.shape[0]

    def logits(self, rows_n: Tensor) -> Float[Tensor, "n V"]:
        """Logits of those rows; one tile's worth, never all."""
        return self.head.logits(self.hidden_NH[rows_n])

    def rows(self, rows_n: Tensor) -> HiddenStates:
        """The states of those rows alone."""
        return replace(self, hidden_NH=self.hidden_NH[rows_n.to(self.hidden_NH.device)])

    def to(self, device: torch.device | str) -> HiddenStates:
        """The same states on `device`; the head stays where it is."""
        return replace(self, hidden_NH=self.hidden_NH.to(device))

    def cut(self, vocabulary: int) -> HiddenStates:
        """The same states with the head over the first `vocabulary` tokens."""
        return replace(self, head=self.head.cut(vocabulary))


def whole_teacher(teacher: Any) -> HiddenStates:
    """The teacher, if it gives whole distributions; else ValueError."""
    if not isinstance(teacher, HiddenStates):
        raise ValueError("the teacher's whole distribution is needed, and it gives none")
    return teacher


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that sums are kept in: float64 stays, everything else becomes float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def align(student: HeadWeights, teacher: HeadWeights, tokens: int) -> tuple[HeadWeights, HeadWeights]:
    """Both heads over the same vocabulary: unchanged if equal in size, else cut to the smaller.

    Rows beyond the tokenizer's last token are padding, and models of one family differ in their number; those that both
    have stay, so that the student's mass there is charged for. tokens: what the tokenizer needs at least.
    Raises ValueError where a head has fewer rows than the tokenizer has tokens.
    """
    if student.vocabulary == teacher.vocabulary:
        return student, teacher
    if min(student.vocabulary, teacher.vocabulary) < tokens:
        raise ValueError(f"heads of {student.vocabulary} and {teacher.vocabulary} rows can't be cut to {tokens} tokens")
    rows = min(student.vocabulary, teacher.vocabulary)
    return student.cut(rows), teacher.cut(rows)
