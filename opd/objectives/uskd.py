"""USKD: soft labels from the student itself, no teacher."""

from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field, NonNegativeFloat
from torch import Tensor

from opd.batch import TokenTable
from opd.objectives.base import RowsObjective


class USKD(RowsObjective):
    """−αP_t log S_t − β Σ_{i≠t} R_i log N(S)_i − μ Σ_i L_i log W_i, mean over the retained tokens, nats; no teacher.

    t: the sampled token. P_t = S_t² + 1 − mean(S_t²) over the step. R: Zipf labels 1/rank of W_i/(1−W_t) + S_i/(1−S_t),
    the rank over all classes, normalised over the non-targets. W: the middle layer's distribution through the
    student's own norm and head, L = 0.9 at t + 0.1/V. arXiv 2303.13005, Eqs. 10 to 15; its code ranks with log S.
    It sees raw classes; only P_t is the stop class's at an end token.
    """

    type: Literal["uskd"] = "uskd"
    needs: ClassVar[tuple[str, ...]] = ("student_logprob",)
    alpha: NonNegativeFloat = 1.0
    """α, weight of the target."""
    beta: NonNegativeFloat = 0.1
    """β, weight of the other classes."""
    mu: NonNegativeFloat = 0.005
    """μ, weight of the middle layer's cross-entropy."""
    layer: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Where the middle layer stands, as a share of the student's depth."""

    @property
    def layer_share(self) -> float:
        return self.layer

    def constants(self, table: TokenTable, weight_C: Float[Tensor, " C"]) -> Float[Tensor, " C"]:
        """P_t of each token."""
        square_C = (2 * table["student_logprob"].double()).exp()
        kept_C = weight_C > 0
        return square_C + 1 - (square_C[kept_C].mean() if kept_C.any() else 0)

    def rows(
        self,
        logits_nV: Float[Tensor, "n V"],
        weak_logits_nV: Float[Tensor, "n V"],
        token_id_n: Int[Tensor, " n"],
        constant_n: Float[Tensor, " n"],
    ) -> Float[Tensor, " n"]:
        target_n1 = token_id_n[:, None]
        log_s_nV, log_w_nV = logits_nV.log_softmax(-1), weak_logits_nV.log_softmax(-1)
        label_nV = soft_labels(log_s_nV.detach(), log_w_nV.detach(), target_n1)
        log_n_nV = log_s_nV.scatter(-1, target_n1, -torch.inf).log_softmax(-1).scatter(-1, target_n1, 0.0)
        never_nV = logits_nV == -torch.inf  # an outcome that can't happen counts nothing
        label_nV, log_n_nV = label_nV.masked_fill(never_nV, 0), log_n_nV.masked_fill(never_nV, 0)
        log_w_nV = log_w_nV.masked_fill(never_nV, 0)
        target_n = -constant_n.to(logits_nV) * log_s_nV.gather(-1, target_n1).squeeze(-1)
        weak_n = -0.9 * log_w_nV.gather(-1, target_n1).squeeze(-1) - 0.1 * log_w_nV.mean(-1)
        return self.alpha * target_n - self.beta * (label_nV * log_n_nV).sum(-1) + self.mu * weak_n


def soft_labels(
    log_s_nV: Float[Tensor, "n V"], log_w_nV: Float[Tensor, "n V"], target_n1: Int[Tensor, "n 1"]
) -> Float[Tensor, "n V"]:
    """Zipf's 1/rank over the non-target classes, summing to 1; ties go to the lower id."""
    score_nV = sum(
        (log_p - torch.log((-torch.expm1(log_p.gather(-1, target_n1))).clamp_min(1e-30))).exp()
        for log_p in (log_w_nV, log_s_nV)
    )
    order_nV = score_nV.sort(dim=-1, descending=True, stable=True).indices
    rank_nV = torch.empty_like(score_nV).scatter_(
        -1, order_nV, torch.arange(1, score_nV.shape[-1] + 1, device=score_nV.device).to(score_nV).expand_as(score_nV)
    )
    label_nV = rank_nV.reciprocal().scatter(-1, target_n1, 0.0)
    return label_nV / label_nV.sum(-1, keepdim=True)
