"""What the rows of a batch pay in one term: weights of a dense objective, slopes of chosen tokens, or whole rows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from opd.head.tile import Tile
from opd.objectives.base import DenseObjective, LogProbs, RowsObjective


@runtime_checkable
class Pay(Protocol):
    """One term's share in the loss of a batch; its rows are the batch's."""

    @property
    def kept_N(self) -> Tensor:
        """Rows that pay, bool [N]; a NaN pays, so that the loss shows it."""

    @property
    def streams(self) -> bool:
        """Whether it can be paid strip by strip of the vocabulary (`stream.py`).

        Else it has `tile(tile)`, for a tile of whole rows: its loss, its gradient with respect to the logits [n, V],
        and that with respect to the middle layer's or None.
        """

    def rows(self, rows_n: Tensor) -> Pay:
        """The same for those rows alone."""


@dataclass(frozen=True)
class DensePay:
    """Σ over outcomes of a dense objective, times each token's weight over the term's global count."""

    objective: DenseObjective
    weight_N: Float[Tensor, " N"]

    @property
    def kept_N(self) -> Tensor:
        """Rows with a weight above 0."""
        return ~(self.weight_N <= 0)

    @property
    def streams(self) -> bool:
        """As the objective does."""
        return self.objective.streams

    def rows(self, rows_n: Tensor) -> DensePay:
        """Those rows alone."""
        return replace(self, weight_N=self.weight_N[rows_n])

    def tile(self, tile: Tile) -> tuple[Tensor, Tensor, None]:
        """Value and gradient over the objective's own outcomes."""
        log_ps_nO, log_pt_nO, back = self.objective.outcomes(tile)
        value_nO, slope_nO = self.objective(LogProbs(log_ps_nO), LogProbs(log_pt_nO))
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

    @property
    def streams(self) -> bool:
        """Always."""
        return True

    def rows(self, rows_n: Tensor) -> ChosenPay:
        """Those rows alone."""
        return ChosenPay(self.token_id_NK[rows_n], self.slope_NK[rows_n])


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

    @property
    def streams(self) -> bool:
        """As the objective does: never."""
        return self.objective.streams

    def rows(self, rows_n: Tensor) -> RowsPay:
        """Those rows alone."""
        return replace(self, weight_N=self.weight_N[rows_n], constant_N=self.constant_N[rows_n])

    def tile(self, tile: Tile) -> tuple[Tensor, Tensor, Tensor | None]:
        """Value and both gradients."""
        logits_nV, weak_nV = (x.detach().requires_grad_() for x in (tile.logits_nV, tile.weak_logits_nV))
        with torch.enable_grad():
            weight_n, constant_n = self.weight_N[tile.rows_n], self.constant_N[tile.rows_n]
            pays_n1 = ~(weight_n <= 0)[:, None]  # another term's row may be infinite in this one
            both = (torch.where(pays_n1, x / tile.settings.temperature, 0) for x in (logits_nV, weak_nV))
            value_n = self.objective.rows(*both, tile.raw_token_id_n, constant_n)
            value = (value_n * weight_n.to(value_n)).sum()
            grads = torch.autograd.grad(value, (logits_nV, weak_nV))
        return value.detach(), *grads


def retained_rows(pays: list[Pay], rows: int, device: torch.device) -> Int[Tensor, " n"]:
    """Rows that some term keeps, in order."""
    if not pays:
        return torch.zeros(0, dtype=torch.long, device=device)
    return torch.stack([pay.kept_N for pay in pays]).any(0).nonzero().squeeze(-1).to(device)
