"""The loss head: what the retained tokens pay, and its gradient, of at most `tile_bytes` of logits at a time.

Terms whose gradient is elementwise go strip by strip over the vocabulary (`stream.py`), the others by tiles of whole
rows (`tile.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from opd.head.cost import tile_rows
from opd.head.gradient import Gradients, narrowed_
from opd.head.pay import Pay, retained_rows
from opd.head.settings import HeadSettings, ruled_out
from opd.head.shard import VocabShard, whole_of
from opd.head.stream import stream
from opd.head.tile import Tile, TopScores
from opd.head.weights import HeadWeights, HiddenStates


def head_loss(
    student: HiddenStates,
    teacher: HiddenStates | TopScores | None,
    pays: list[Pay],
    token_id_N: Int[Tensor, " N"],
    settings: HeadSettings,
    weak_NH: Float[Tensor, "N H"] | None = None,
    known: Mapping[str, Tensor] | None = None,
    shard: VocabShard | None = None,
) -> Float[Tensor, ""]:
    """Σ over terms of what the rows pay, in nats; differentiable in hidden states, the middle layer's, weight and bias.

    Only rows that some term keeps are computed: time falls with their number. The gradient with respect to a logit is
    f′ − p_S·Σf′ over the temperature; no T² factor. Peak memory: `cost.loss_cost`.
    known: `row_statistics` of the same states, where there are any; with both normalisers and what the objectives name
    as their `sums`, the gradient takes one sweep in which nothing is kept. They must be of the same states, temperature
    and stop class: the loss is NaN where the student's normaliser is not, nothing else is checked.
    shard: which part of the vocabulary both heads hold, where they hold one; the N tokens are then those of all shards,
    the gradient of hidden states is of all parts, that of the weight of one's own. Raises ValueError for a term that
    needs whole rows of a part, for a missing teacher, and for a float16 head in `fast` or on a GPU.
    """
    head = student.head
    settings.check_trainable(head.weight_VH)
    weak_NH = student.hidden_NH.detach()[:0] if weak_NH is None else weak_NH
    given = _Given(teacher, pays, token_id_N, settings, known or {}, shard or whole_of(head))
    return _HeadLoss.apply(student.hidden_NH, weak_NH, head.weight_VH, head.bias_V, head, given)


@dataclass(frozen=True)
class _Given:
    """What takes no gradient."""

    teacher: HiddenStates | TopScores | None
    pays: list[Pay]
    token_id_N: Tensor
    settings: HeadSettings
    known: Mapping[str, Tensor]
    shard: VocabShard


class _HeadLoss(torch.autograd.Function):
    """Loss and gradient together in the forward pass: the backward multiplies by the incoming scalar, in place.

    A second backward, which only tests ask for, computes them again, where the weight is a parameter itself: one that
    was made for this pass, by an adapter or as a view of a gathered one, is let go.
    """

    @staticmethod
    def forward(ctx, hidden_NH, weak_NH, weight_VH, bias_V, head: HeadWeights, given):
        ctx.compute = partial(_compute, HiddenStates(hidden_NH, head), weak_NH, given, ctx.needs_input_grad[:4])
        ctx.is_parameter = weight_VH.is_leaf
        ctx.dtypes = [None if x is None else x.dtype for x in (hidden_NH, weak_NH, weight_VH, bias_V)]
        loss, ctx.grads = ctx.compute()
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_loss):
        grads, ctx.grads = ctx.compute()[1] if ctx.grads is None else ctx.grads, None
        if not ctx.is_parameter:
            ctx.compute = None
        pairs = zip(grads, ctx.dtypes, strict=True)
        return (*(None if g is None else narrowed_(g.mul_(grad_loss), dtype) for g, dtype in pairs), None, None)


@torch.no_grad()
def _compute(
    student: HiddenStates, weak_NH: Tensor, given: _Given, wants: tuple[bool, ...]
) -> tuple[Tensor, list[Tensor | None]]:
    """The loss, and the gradients that are wanted of hidden states, middle layer, weight and bias."""
    streamed, tiled = ([pay for pay in given.pays if pay.streams is streams] for streams in (True, False))
    rounds = given.settings.precision == "fast" and not tiled
    gradients = Gradients(student, weak_NH, wants, given.shard, rounds=rounds)
    if tiled and given.shard.vocabulary != student.head.vocabulary:
        raise ValueError("a term that needs whole rows can't be paid by a part of the vocabulary; give whole heads")
    with torch.autocast(student.hidden_NH.device.type, enabled=False):
        loss = stream(student, given.teacher, streamed, given.settings, given.known, gradients, given.shard)
        loss += _by_tiles(student, weak_NH, tiled, given, gradients)
    return ruled_out(loss), gradients.collected()


def _by_tiles(student: HiddenStates, weak_NH: Tensor, pays: list[Pay], given: _Given, gradients: Gradients) -> Tensor:
    """The loss of terms that need whole rows; their gradient is added."""
    loss, head = student.hidden_NH.new_zeros((), dtype=gradients.dtype), student.head
    n = tile_rows(head.vocabulary, itemsize=gradients.dtype.itemsize, tile_bytes=given.settings.tile_bytes)
    rows_N = retained_rows(pays, len(student), student.hidden_NH.device)
    for rows_n in rows_N.split(n) if len(rows_N) else ():
        tile = Tile(rows_n, student, given.teacher, given.token_id_N, given.settings, weak_NH)
        value, grad_nV, grad_weak_nV = _tile(tile, pays)
        loss += value
        if grad_weak_nV is not None and not len(weak_NH):  # the last layer stands in for the middle one
            grad_nV, grad_weak_nV = grad_nV + grad_weak_nV, None
        gradients.add_rows(rows_n, head.product_gradient(tile.logits_nV, grad_nV))
        if grad_weak_nV is not None:
            gradients.add_rows(rows_n, head.product_gradient(tile.weak_logits_nV, grad_weak_nV), weak_NH=weak_NH)
        del tile, grad_nV, grad_weak_nV  # or they would live through the next tile
    return loss


def _tile(tile: Tile, pays: list[Pay]) -> tuple[Tensor, Tensor, Tensor | None]:
    """Loss of a tile of rows, and its gradients [n, V] with respect to logits: last layer, middle layer."""
    loss, grad_nV, grad_weak_nV = tile.logits_nV.new_zeros(()), torch.zeros_like(tile.logits_nV), None
    for pay in pays:
        value, term_grad_nV, term_weak_nV = pay.tile(tile)
        loss += value
        grad_nV += term_grad_nV
        if term_weak_nV is not None:
            grad_weak_nV = term_weak_nV if grad_weak_nV is None else grad_weak_nV + term_weak_nV
        del term_grad_nV, term_weak_nV  # or they would live through the next term
    return loss, grad_nV, grad_weak_nV
