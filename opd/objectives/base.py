"""What a retained token pays: the three kinds of objective, each a frozen record that is also the callable.

- dense: elementwise functions of the outcomes' log-probabilities; the head sums over the vocabulary.
- chosen: a loss on the token table, from log-probabilities of chosen tokens; it may mix tokens and rollouts.
- rows: plain torch on whole rows under the tile budget, for what fits neither.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from opd.batch import TokenTable
from opd.head.outcomes import Outcomes
from opd.record import Record

Outcome = Float[Tensor, "n O"]


@dataclass
class LogProbs:
    """One model's log-probabilities of the outcomes, and their probabilities, made when they are first asked for."""

    log_nO: Outcome

    @cached_property
    def p_nO(self) -> Outcome:
        """exp(log_nO)."""
        return self.log_nO.exp()


class Objective(Record):
    """What the three kinds share: `needs` names the statistics that it reads from the token table."""

    type: str
    needs: ClassVar[tuple[str, ...]] = ()
    reads_teacher: ClassVar[bool] = True
    """Whether the teacher's whole distribution at a token is read."""

    @property
    def streams(self) -> bool:
        """Whether it goes strip by strip, or part by part, of the vocabulary; else it needs whole rows of logits."""
        return True

    def metrics(self, table: TokenTable, weight_C: Float[Tensor, " C"]) -> dict[str, float]:
        """What the objective says of a step beside its loss, by name."""
        return {}


class DenseObjective(Objective):
    """A loss that is a sum over outcomes of an elementwise function f(log p_S, log p_T).

    Calling it gives value f and slope f′ = ∂f/∂log p_S, both [n, O], log p_S taken as a free variable. The head sums f
    and forms the gradient with respect to the logits, f′ − p_S·Σf′. Log-probabilities are finite: LEAST
    (head/settings.py) stands for −inf, so that p · x is 0 where p is.
    """

    sums: ClassVar[str | None] = None
    """The row statistic from which `totals` gives Σf and Σf′; None where they take a sweep of their own."""

    @property
    def outcomes(self) -> Outcomes | None:
        """What the sum runs over; None for every outcome."""
        return None

    @property
    def streams(self) -> bool:
        """Where the sum runs over every outcome."""
        return self.outcomes is None

    def totals(self, statistic_n: Float[Tensor, " n"]) -> tuple[Tensor, Tensor]:
        """(Σf, Σf′) over the outcomes of each row, [n] each, from the statistic named by `sums`."""
        raise NotImplementedError

    def __call__(self, student: LogProbs, teacher: LogProbs | None) -> tuple[Outcome, Outcome]:
        """(f, f′) of a tile of rows, each [n, O]."""
        raise NotImplementedError


@dataclass(frozen=True)
class Chosen:
    """What a chosen objective pays in all: Σ slope · log p_S(id) has the loss's gradient.

    value: the loss itself, nats, already over its own count. token_id_CK, slope_CK: [C, K]; slope 0 pays nothing.
    """

    value: Float[Tensor, ""]
    token_id_CK: Int[Tensor, "C K"]
    slope_CK: Float[Tensor, "C K"]


class ChosenObjective(Objective):
    """A loss on log-probabilities of chosen tokens: the sampled one, the student's top K, or the teacher's first.

    The gradient is taken on the token table, the same on every rank, and handed to the head as slopes.
    """

    reads_teacher: ClassVar[bool] = False
    is_policy_gradient: ClassVar[bool] = False
    """Whether it is an expectation over sampled tokens, so that the sampler's temperature must be the loss's."""
    token_ids: ClassVar[str | None] = None
    """The statistic that holds the chosen ids; None for the sampled token."""
    logprobs: ClassVar[str] = "student_logprob"
    """The statistic that holds the student's log-probabilities of the chosen tokens."""

    @property
    def candidates(self) -> int:
        """K of the student's top K, where it is asked for."""
        return 0

    def loss(
        self, log_p_CK: Float[Tensor, "C K"], table: TokenTable, weight_C: Float[Tensor, " C"]
    ) -> Float[Tensor, ""]:
        """The loss over its own count, nats, differentiable in the student's log-probabilities of the chosen tokens."""
        raise NotImplementedError

    def choose(self, table: TokenTable, weight_C: Float[Tensor, " C"]) -> Chosen:
        """Loss and slopes on the whole step's table."""
        log_p_CK = _columns(table[self.logprobs]).double().clone().requires_grad_()
        ids_CK = _columns(table.token_id_C if self.token_ids is None else table[self.token_ids]).long()
        with torch.enable_grad():
            value = self.loss(log_p_CK, table, weight_C.double())
            (slope_CK,) = torch.autograd.grad(value, log_p_CK) if value.requires_grad else (torch.zeros_like(log_p_CK),)
        unpaid_C1 = (weight_C <= 0)[:, None]  # a token that pays nothing may be one that a model rules out
        return Chosen(value.detach(), ids_CK, slope_CK.masked_fill(unpaid_C1, 0))


def _columns(column: Tensor) -> Tensor:
    """[C] as [C, 1]; [C, K] as it is."""
    return column[:, None] if column.ndim == 1 else column


def mean_over(value_C: Float[Tensor, " C"], weight_C: Float[Tensor, " C"]) -> Float[Tensor, ""]:
    """Σ weight · value over the number of tokens with weight; 0 where there is none, NaN where a weight is."""
    kept_C = ~(weight_C <= 0)
    return (value_C[kept_C] * weight_C[kept_C]).sum() / max(1, int(kept_C.sum()))


class RowsObjective(Objective):
    """Plain torch on blocks [n, V] of logits; the head takes its gradient by autograd, a tile at a time."""

    reads_teacher: ClassVar[bool] = False
    layer_share: ClassVar[float | None] = None
    """Where a middle layer's logits are read too: at this share of the student's depth."""

    @property
    def streams(self) -> bool:
        """Never."""
        return False

    def constants(self, table: TokenTable, weight_C: Float[Tensor, " C"]) -> Float[Tensor, " C"]:
        """A number for each token that depends on the whole step, without gradient."""
        return torch.zeros_like(weight_C)

    def rows(
        self,
        logits_nV: Float[Tensor, "n V"],
        weak_logits_nV: Float[Tensor, "n V"],
        token_id_n: Int[Tensor, " n"],
        constant_n: Float[Tensor, " n"],
    ) -> Float[Tensor, " n"]:
        """Each row's loss, nats, differentiable in both logits."""
        raise NotImplementedError
