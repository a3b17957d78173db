"""The loss head: what the retained tokens pay, and its gradient, in one pass over tiles of rows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from opd.head.cost import tile_rows
from opd.head.tile import HeadSettings, Tile, TopScores
from opd.head.weights import HeadWeights, HiddenStates, working_dtype
from opd.objectives.base import DenseObjective, RowsObjective


@runtime_checkable
class Pay(Protocol):
    """One term's share in the loss of a batch; its rows are the batch's."""

    @property
    def kept_N(self) -> Tensor:
        """Rows that pay, bool [N]; a NaN pays, so that the loss shows it."""

    def rows(self, rows_n: Tensor) -> Pay:
        """The same for those rows alone."""

    def tile(self, tile: Tile) -> tuple[Tensor, Tensor, Tensor | None]:
        """(loss of the tile, its gradient with respect to the logits [n, V], and to the middle layer's or None)."""


@dataclass(frozen=True)
class DensePay:
    """Σ over outcomes of a dense objective, times each token's weight over the term's global count."""

    objective: DenseObjective
    weight_N: Float[Tensor, " N"]

    @property
    def kept_N(self) -> Tensor:
        """Rows with a weight above 0."""
        return ~(self.weight_N <= 0)

    def rows(self, rows_n: Tensor) -> DensePay:
        """Those rows alone."""
        return replace(self, weight_N=self.weight_N[rows_n])

    def tile(self, tile: Tile) -> tuple[Tensor, Tensor, None]:
        """Value and gradient."""
        log_ps_nO, log_pt_nO, back = self.objective.outcomes(tile, teacher=self.objective.reads_teacher)
        value_nO, slope_nO = self.objective(log_ps_nO, log_pt_nO)
        weight_n = self.weight_N[tile.rows_n].to(log_ps_nO)
        value = (value_nO.sum(-1) * weight_n).sum()
        del value_nO  # or it would live through the way back
        return value, back(slope_nO * weight_n[:, None]), None


@dataclass(frozen=True)
class ChosenPay:
    """Σ slope · log p_S(id): the gradient of a chosen objective. Its value was counted on the token table."""

    token_id_NK: Int[Tensor, "N K"]
    slope_NK: Float[Tensor, "N K"]

    @property
    def kept_N(self) -> Tensor:
        """Rows with a slope."""
        return (self.slope_NK != 0).any(-1)

    def rows(self, rows_n: Tensor) -> ChosenPay:
        """Those rows alone."""
        return ChosenPay(self.token_id_NK[rows_n], self.slope_NK[rows_n])

    def tile(self, tile: Tile) -> tuple[Tensor, Tensor, None]:
        """0, and the gradient."""
        slope_nV = torch.zeros_like(tile.logits_nV)
        ids_nK = tile.outcome_of(self.token_id_NK[tile.rows_n])
        slope_nV.scatter_add_(-1, ids_nK, self.slope_NK[tile.rows_n].to(slope_nV))
        return slope_nV.new_zeros(()), tile.back(slope_nV), None


@dataclass(frozen=True)
class RowsPay:
    """A rows objective, with its constants and a middle layer's logits; the gradient by autograd on the tile."""

    objective: RowsObjective
    weight_N: Float[Tensor, " N"]
    constant_N: Float[Tensor, " N"]

    @property
    def kept_N(self) -> Tensor:
        """Rows with a weight above 0."""
        return ~(self.weight_N <= 0)

    def rows(self, rows_n: Tensor) -> RowsPay:
        """Those rows alone."""
        return replace(self, weight_N=self.weight_N[rows_n], constant_N=self.constant_N[rows_n])

    def tile(self, tile: Tile) -> tuple[Tensor, Tensor, Tensor | None]:
        """Value and both gradients."""
        with torch.enable_grad():
            logits_nV = tile.logits_nV.detach().requires_grad_()
            weak_nV = tile.weak_logits_nV.detach().requires_grad_()
            over = tile.settings.temperature
            constant_n = self.constant_N[tile.rows_n]
            value_n = self.objective.rows(logits_nV / over, weak_nV / over, tile.raw_token_id_n, constant_n)
            value = (value_n * self.weight_N[tile.rows_n].to(value_n)).sum()
            grads = torch.autograd.grad(value, (logits_nV, weak_nV))
        return value.detach(), *grads


def head_loss(
    student: HiddenStates,
    teacher: HiddenStates | TopScores | None,
    pays: list[Pay],
    token_id_N: Int[Tensor, " N"],
    settings: HeadSettings,
    weak_NH: Float[Tensor, "N H"] | None = None,
) -> Float[Tensor, ""]:
    """Σ over terms of what the rows pay, in nats; differentiable in hidden states, the middle layer's, weight and bias.

    Only rows that some term keeps are computed: time falls with their number. The gradient with respect to a logit is
    f′ − p_S·Σf′ over the temperature; no T² factor. Peak memory: `cost.peak_extra_bytes`.
    """
    head = student.head
    weak_NH = student.hidden_NH[:0] if weak_NH is None else weak_NH
    return _HeadLoss.apply(
        student.hidden_NH, weak_NH, head.weight_VH, head.bias_V, head, (teacher, pays, token_id_N, settings)
    )


def retained_rows(pays: list[Pay], rows: int, device: torch.device) -> Int[Tensor, " n"]:
    """Rows that some term keeps, in order."""
    if not pays:
        return torch.zeros(0, dtype=torch.long, device=device)
    return torch.stack([pay.kept_N for pay in pays]).any(0).nonzero().squeeze(-1).to(device)


class _HeadLoss(torch.autograd.Function):
    """Loss and gradient together in the forward pass: the backward only multiplies by the incoming scalar."""

    @staticmethod
    def forward(ctx, hidden_NH, weak_NH, weight_VH, bias_V, head: HeadWeights, given):
        teacher, pays, token_id_N, settings = given
        needs_hidden, needs_weak, needs_weight, needs_bias = ctx.needs_input_grad[:4]
        dtype = working_dtype(hidden_NH.dtype)
        loss = torch.zeros((), dtype=dtype, device=hidden_NH.device)
        grad_hidden_NH = torch.zeros_like(hidden_NH) if needs_hidden else None
        grad_weak_NH = torch.zeros_like(weak_NH) if needs_weak else None
        grad_weight_VH = torch.zeros_like(weight_VH, dtype=dtype) if needs_weight else None
        grad_bias_V = torch.zeros_like(bias_V, dtype=dtype) if needs_bias else None
        student = HiddenStates(hidden_NH, head)
        n = tile_rows(head.vocabulary, itemsize=dtype.itemsize, tile_bytes=settings.tile_bytes)
        for rows_n in retained_rows(pays, len(hidden_NH), hidden_NH.device).split(n):
            value, pairs = _tile(student, teacher, pays, rows_n, token_id_N, settings, weak_NH)
            loss += value
            for grad_nV, states_NH, grad_states_NH in zip(
                pairs, (hidden_NH, weak_NH), (grad_hidden_NH, grad_weak_NH), strict=False
            ):
                grad_nV = grad_nV.to(weight_VH.dtype)
                if grad_states_NH is not None:
                    grad_states_NH[rows_n] = grad_nV @ weight_VH
                if needs_weight:
                    grad_weight_VH += grad_nV.T @ states_NH[rows_n]
                if needs_bias:
                    grad_bias_V += grad_nV.sum(0, dtype=dtype)
            del grad_nV, pairs  # or they would live through the next tile
        grad_weight_VH = grad_weight_VH.to(weight_VH.dtype) if needs_weight else None
        grad_bias_V = grad_bias_V.to(bias_V.dtype) if needs_bias else None
        ctx.save_for_backward(grad_hidden_NH, grad_weak_NH, grad_weight_VH, grad_bias_V)
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_loss):
        return (*(None if grad is None else grad * grad_loss for grad in ctx.saved_tensors), None, None)


def _tile(
    student: HiddenStates,
    teacher: HiddenStates | TopScores | None,
    pays: list[Pay],
    rows_n: Tensor,
    token_id_N: Tensor,
    settings: HeadSettings,
    weak_NH: Tensor,
) -> tuple[Tensor, list[Tensor]]:
    """Loss of a tile of rows, and its gradients [n, V] with respect to h Wᵀ + b: last layer, middle layer."""
    tile = Tile(rows_n, student, teacher, token_id_N, settings, weak_NH)
    loss, grad_nV, grad_weak_nV = tile.logits_nV.new_zeros(()), torch.zeros_like(tile.logits_nV), None
    for pay in pays:
        value, term_grad_nV, term_weak_nV = pay.tile(tile)
        loss = loss + value
        grad_nV += term_grad_nV
        if term_weak_nV is not None:
            grad_weak_nV = term_weak_nV if grad_weak_nV is None else grad_weak_nV + term_weak_nV
        del term_grad_nV, term_weak_nV  # or they would live through the next term
    if grad_weak_nV is not None and not len(weak_NH):  # the last layer stands in for the middle one
        grad_nV, grad_weak_nV = grad_nV + grad_weak_nV, None
    grads = [student.head.product_gradient(tile.logits_nV, grad_nV)]
    if grad_weak_nV is not None:
        grads.append(student.head.product_gradient(tile.weak_logits_nV, grad_weak_nV))
    return loss, grads
