"""Skewed KLs: a KL whose second argument is softened with the first, so that no ratio explodes."""

import math
from typing import Annotated, Literal

import torch
from pydantic import Field

from opd.head.tile import weigh
from opd.objectives.base import Outcome
from opd.objectives.divergence import Divergence


class SkewKL(Divergence):
    """forward: KL(T‖αT + (1−α)S), f′ = −(1−α)p_T p_S/m. reverse: KL(S‖αS + (1−α)T), f′ = f + p_S − αp_S²/m. Nats.

    DistiLLM, arXiv 2402.03898, Eqs. 4 and 5. α = 0 is the plain KL; towards 1 nothing is left to learn.
    """

    type: Literal["skew_kl"] = "skew_kl"
    direction: Literal["forward", "reverse"] = "reverse"
    """forward charges for what the teacher would do, reverse for what the student does."""
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the first argument in the second."""

    def __call__(self, log_ps_nO: Outcome, log_pt_nO: Outcome) -> tuple[Outcome, Outcome]:
        first, second = (log_pt_nO, log_ps_nO) if self.direction == "forward" else (log_ps_nO, log_pt_nO)
        log_m_nO = torch.logaddexp(first + math.log(self.alpha), second + math.log1p(-self.alpha))
        p_nO = first.exp()
        value_nO = weigh(p_nO, first - log_m_nO)
        share_nO = weigh(p_nO, torch.nan_to_num((log_ps_nO - log_m_nO).exp()))
        if self.direction == "forward":
            return value_nO, -(1 - self.alpha) * share_nO
        return value_nO, value_nO + p_nO - self.alpha * share_nO
