"""The loss head: what the retained tokens pay, and its gradient, in one pass over tiles of rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from opd.head.cost import tile_rows
from opd.head.weights import HeadWeights, HiddenStates, working_dtype
from opd.objectives.base import DenseObjective


@dataclass(frozen=True)
class Payment:
    """One term's share in the loss: its objective, and each token's weight over the term's global count."""

    objective: DenseObjective
    weight_C: Float[Tensor, " C"]


def head_loss(
    student: HiddenStates,
    teacher: HiddenStates,
    payments: list[Payment],
    *,
    temperature: float,
    tile_bytes: int,
) -> Float[Tensor, ""]:
    """Σ over terms and tokens of weight · Σ_V f(log p_S, log p_T), in nats; differentiable in states, weight and bias.

    Only rows with a weight above 0 in some term are computed: time falls with their number. The gradient with respect
    to a logit is f′ − p_S·Σf′ over the temperature; no T² factor. Peak memory: `cost.peak_extra_bytes`.
    """
    head = student.head
    return _HeadLoss.apply(
        student.hidden_NH, head.weight_VH, head.bias_V, head, teacher, payments, temperature, tile_bytes
    )


class _HeadLoss(torch.autograd.Function):
    """Loss and gradient together in the forward pass: the backward only multiplies by the incoming scalar."""

    @staticmethod
    def forward(ctx, hidden_NH, weight_VH, bias_V, head: HeadWeights, teacher, payments, temperature, tile_bytes):
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        dtype = working_dtype(hidden_NH.dtype)
        loss = torch.zeros((), dtype=dtype, device=hidden_NH.device)
        grad_hidden_NH = torch.zeros_like(hidden_NH) if needs_hidden else None
        grad_weight_VH = torch.zeros_like(weight_VH, dtype=dtype) if needs_weight else None
        grad_bias_V = torch.zeros_like(bias_V, dtype=dtype) if needs_bias else None
        student = HiddenStates(hidden_NH, head)
        n = tile_rows(head.vocabulary, itemsize=dtype.itemsize, tile_bytes=tile_bytes)
        for rows_n in retained_rows(payments, hidden_NH.device).split(n):
            value, grad_nV = _tile(student, teacher, payments, rows_n, temperature)
            loss += value
            grad_nV = grad_nV.to(weight_VH.dtype)
            if needs_hidden:
                grad_hidden_NH[rows_n] = grad_nV @ weight_VH
            if needs_weight:
                grad_weight_VH += grad_nV.T @ hidden_NH[rows_n]
            if needs_bias:
                grad_bias_V += grad_nV.sum(0, dtype=dtype)
            del grad_nV  # or it would live through the next tile
        grad_weight_VH = grad_weight_VH.to(weight_VH.dtype) if needs_weight else None
        grad_bias_V = grad_bias_V.to(bias_V.dtype) if needs_bias else None
        ctx.save_for_backward(grad_hidden_NH, grad_weight_VH, grad_bias_V)
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_loss):
        grads = [None if grad is None else grad * grad_loss for grad in ctx.saved_tensors]
        return (*grads, None, None, None, None, None)


def retained_rows(payments: list[Payment], device: torch.device) -> Tensor:
    """Rows that some term weighs above 0, in order; a weight that is NaN is kept, so that the loss shows it."""
    if not payments:
        return torch.zeros(0, dtype=torch.long, device=device)
    return torch.stack([~(payment.weight_C <= 0) for payment in payments]).any(0).nonzero().squeeze(-1).to(device)


def _tile(
    student: HiddenStates, teacher: HiddenStates, payments: list[Payment], rows_n: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Loss of a tile of rows, and its gradient with respect to h Wᵀ + b, [n, V]."""
    logits_nV = student.head.logits(student.hidden_NH[rows_n])
    log_ps_nV = torch.log_softmax(logits_nV / temperature, dim=-1)
    log_pt_nV = teacher.log_probs(rows_n, temperature)
    loss, slope_nV = log_ps_nV.new_zeros(()), torch.zeros_like(log_ps_nV)
    for payment in payments:
        weight_n = payment.weight_C[rows_n].to(log_ps_nV)
        value_nV, term_slope_nV = payment.objective(log_ps_nV, log_pt_nV)
        loss = loss + (value_nV.sum(-1) * weight_n).sum()
        slope_nV.addcmul_(term_slope_nV, weight_n[:, None])
        del value_nV, term_slope_nV  # or they would live through the next term
    grad_nV = slope_nV - log_ps_nV.exp() * slope_nV.sum(-1, keepdim=True)
    return loss, student.head.product_gradient(logits_nV, grad_nV / temperature)
