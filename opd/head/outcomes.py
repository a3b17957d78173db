"""What a dense objective sums over where it isn't every outcome: all but the target, or a list and its tail.

Each `Outcomes` turns a tile into log-probabilities [n, O] of student and teacher, and a slope with respect to the
student's into a gradient with respect to its logits. An outcome that merges columns shares its gradient by p_i / P.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from opd.head.settings import LEAST
from opd.head.tile import Tile

Back = Callable[[Tensor], Tensor]
"""∂loss/∂log p_S over outcomes [n, O] → ∂loss/∂logits [n, V]."""


@runtime_checkable
class Outcomes(Protocol):
    """A way to read a tile."""

    def __call__(self, tile: Tile) -> tuple[Tensor, Tensor, Back]:
        """(log p_S [n, O], log p_T [n, O], the way back)."""


@dataclass(frozen=True)
class WithoutTarget:
    """All outcomes but the target, renormalised: N = softmax(logits / temperature) over V − 1 (arXiv 2303.13005).

    By a masked log-sum-exp, never by log(1 − p_t), which has no digits where p_t is near 1.
    """

    target: Literal["sampled", "teacher"]
    temperature: float

    def __call__(self, tile: Tile) -> tuple[Tensor, Tensor, Back]:
        """O = V, with the target at −inf."""
        target_n1 = (tile.token_id_n if self.target == "sampled" else tile.teacher_top)[:, None]
        ours_nV = _renormalised(tile.student(self.temperature), target_n1)
        theirs_nV = _renormalised(tile.teacher(self.temperature), target_n1)

        def back(slope_nV: Tensor) -> Tensor:
            return tile.spread(slope_nV - ours_nV.exp() * slope_nV.sum(-1, keepdim=True), self.temperature)

        return ours_nV.clamp(LEAST), theirs_nV.clamp(LEAST), back


@dataclass(frozen=True)
class TeacherTop:
    """The teacher's k likeliest tokens, and all the rest as one outcome (`bucket`) or left out (`renormalise`).

    τ_T = max(1 − Σ listed, 1e-8). Renormalising lets the student's tail grow unpunished: for comparison only.
    """

    k: int
    tail: Literal["bucket", "renormalise"] = "bucket"

    def __call__(self, tile: Tile) -> tuple[Tensor, Tensor, Back]:
        """O = K + 1, the tail last; K where the list is the whole vocabulary or the tail is left out."""
        ids_nK, theirs_nK = tile.teacher_list(self.k)
        ours_nV = tile.student()
        ours_nK = ours_nV.gather(-1, ids_nK.clamp_min(0)).masked_fill(ids_nK < 0, -torch.inf)
        if self.tail == "renormalise":
            ours_nO, theirs_nO = ours_nK.log_softmax(-1), theirs_nK.log_softmax(-1)
            rest_nV = None
        else:
            listed_nV = _listed(ids_nK, ours_nV.shape[-1])
            rest_nV = ours_nV.masked_fill(listed_nV, -torch.inf)
            has_tail_n1 = (tile.happens() & ~listed_nV).any(-1, keepdim=True)
            left_n1 = (1 - theirs_nK.double().exp().sum(-1, keepdim=True)).clamp_min(1e-8).log().to(theirs_nK)
            ours_nO = torch.cat([ours_nK, rest_nV.logsumexp(-1, keepdim=True)], -1)
            theirs_nO = torch.cat([theirs_nK, left_n1.masked_fill(~has_tail_n1, -torch.inf)], -1)

        def back(slope_nO: Tensor) -> Tensor:
            grad_nO = slope_nO - ours_nO.exp() * slope_nO.sum(-1, keepdim=True)
            grad_nV = torch.zeros_like(ours_nV)
            if rest_nV is not None:
                grad_nV += torch.nan_to_num(rest_nV.softmax(-1)) * grad_nO[:, -1:]
            grad_nV.scatter_add_(-1, ids_nK.clamp_min(0), grad_nO[:, : ids_nK.shape[-1]].masked_fill(ids_nK < 0, 0.0))
            return tile.spread(grad_nV, tile.settings.temperature)

        return ours_nO.clamp(LEAST), theirs_nO.clamp(LEAST), back


def _renormalised(log_p_nV: Tensor, target_n1: Tensor) -> Tensor:
    return log_p_nV.scatter(-1, target_n1, -torch.inf).log_softmax(-1)


def _listed(ids_nK: Tensor, vocabulary: int) -> Tensor:
    """Whether each column is in the list, bool [n, V]; −1 in the list stands for none."""
    listed_nV = torch.zeros(len(ids_nK), vocabulary + 1, dtype=torch.bool, device=ids_nK.device)
    return listed_nV.scatter_(-1, torch.where(ids_nK < 0, vocabulary, ids_nK), True)[:, :vocabulary]
