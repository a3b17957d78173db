"""Preference between a prompt's best and worst rollout, token by token guided by the teacher."""

from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor

from opd.batch import TokenTable
from opd.objectives.base import ChosenObjective


class TGDPO(ChosenObjective):
    """−log σ(Σ_t βf_w(r̂_t) log[π_θ/π_ref](y_w^t) − Σ_t βf_l(r̂_t) log[π_θ/π_ref](y_l^t)), mean over pairs, nats.

    f_w = 1 + αr̂, f_l = 1 − αr̂, r̂ = β log π_T/π_ref without gradient; π_ref is the student at start. A pair is a
    prompt's best and worst rollout by reward; a tie makes none. arXiv 2506.14574, Eq. 13; α = 0 is DPO. f may go
    negative and then pushes the wrong way: `clamp` cuts it at 0, and the metric `distrusted` says how often it happens.
    A token counts where its weight is above 0; a gate's size changes nothing here.
    """

    type: Literal["tgdpo"] = "tgdpo"
    needs: ClassVar[tuple[str, ...]] = ("student_logprob", "teacher_logprob", "reference_logprob", "reward")
    alpha: NonNegativeFloat = 0.5
    """α, how much the teacher guides."""
    beta: PositiveFloat = 0.1
    """β, DPO's temperature."""
    clamp: bool = False
    """f = max(f, 0); the paper does not."""

    def loss(self, log_p_CK: Float[Tensor, "C 1"], table: TokenTable, weight_C: Float[Tensor, " C"]) -> Tensor:
        kept_C = ~(weight_C <= 0)
        found = pairs(table.rows(kept_C.nonzero().squeeze(-1)))
        if not found:
            return log_p_CK.sum() * 0
        rollout_C = table.rollout_C
        best, worst = (torch.tensor(side) for side in zip(*found, strict=True))
        part_B, sign_C = log_p_CK.new_zeros(len(table.length_B)), signs(table, found)
        term_C = self.beta * self.trust(table, sign_C) * (log_p_CK.squeeze(-1) - table["reference_logprob"])
        part_B = part_B.index_add(0, rollout_C, torch.where(kept_C & (sign_C != 0), term_C + 0 * weight_C, 0))
        return -torch.nn.functional.logsigmoid(part_B[best] - part_B[worst]).mean()

    def trust(self, table: TokenTable, sign_C: Float[Tensor, " C"]) -> Float[Tensor, " C"]:
        """f of each token: 1 + αr̂ in the better rollout (sign 1), 1 − αr̂ in the worse (sign −1), 1 in none."""
        guide_C = self.beta * (table["teacher_logprob"] - table["reference_logprob"]).to(sign_C)
        trust_C = 1 + torch.where(sign_C == 0, 0, self.alpha * sign_C * guide_C)
        return trust_C.clamp_min(0) if self.clamp else trust_C

    def metrics(self, table: TokenTable, weight_C: Float[Tensor, " C"]) -> dict[str, float]:
        """distrusted: share of the pairs' tokens with f ≤ 0; NaN without a pair."""
        kept_C = ~(weight_C <= 0)
        sign_C = signs(table, pairs(table.rows(kept_C.nonzero().squeeze(-1))))
        trust_C = self.trust(table, sign_C)[kept_C & (sign_C != 0)]
        return {"distrusted": float((trust_C <= 0).double().mean())}


def signs(table: TokenTable, found: list[tuple[int, int]]) -> Float[Tensor, " C"]:
    """1 for tokens of a pair's better rollout, −1 for those of its worse, 0 for the rest; float64."""
    best, worst = (torch.tensor([pair[side] for pair in found], dtype=torch.long) for side in (0, 1))
    return torch.isin(table.rollout_C, best).double() - torch.isin(table.rollout_C, worst).double()


def pairs(table: TokenTable) -> list[tuple[int, int]]:
    """(best, worst) rollout of each group by reward, the earlier at a tie; none where all earn the same or nothing."""
    found = []
    present_B = torch.bincount(table.rollout_C, minlength=len(table.length_B)) > 0
    for group in table.group_B.unique().tolist():
        members = ((table.group_B == group) & present_B & ~table.reward_B.isnan()).nonzero().squeeze(-1)
        if len(members) and table.reward_B[members].max() > table.reward_B[members].min():
            rewards = table.reward_B[members]
            found.append((int(members[rewards.argmax()]), int(members[rewards.argmin()])))
    return found
