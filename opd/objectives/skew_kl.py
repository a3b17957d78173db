"""Skewed KLs: a KL whose second argument is softened with the first, so that no ratio explodes."""

from typing import Annotated, Literal

import torch
from pydantic import Field

from opd.objectives.base import LogProbs, Outcome
from opd.objectives.divergence import Divergence, log


class SkewKL(Divergence):
    """forward: KL(T‖αT + (1−α)S), f′ = −(1−α)p_T p_S/m. reverse: KL(S‖αS + (1−α)T), f′ = f + p_S − αp_S²/m. Nats.

    DistiLLM, arXiv 2402.03898, Eqs. 4 and 5. α = 0 is the plain KL; towards 1 nothing is left to learn.
    """

    type: Literal["skew_kl"] = "skew_kl"
    direction: Literal["forward", "reverse"] = "reverse"
    """forward charges for what the teacher would do, reverse for what the student does."""
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the first argument in the second."""

    def __call__(self, student: LogProbs, teacher: LogProbs) -> tuple[Outcome, Outcome]:
        first, second = (teacher, student) if self.direction == "forward" else (student, teacher)
        log_m_nO = log(torch.lerp(first.p_nO, second.p_nO, 1 - self.alpha))
        value_nO = first.p_nO * (first.log_nO - log_m_nO)
        share_nO = first.p_nO * (student.log_nO - log_m_nO).clamp_max(80).exp()
        if self.direction == "forward":
            return value_nO, -(1 - self.alpha) * share_nO
        return value_nO, value_nO + first.p_nO - self.alpha * share_nO
