"""The generalised Jensen–Shannon divergence, between forward and reverse KL."""

import math
from typing import Annotated, Literal

import torch
from pydantic import Field

from opd.head.tile import weigh
from opd.objectives.base import Outcome
from opd.objectives.divergence import Divergence
from opd.objectives.forward_kl import ForwardKL
from opd.objectives.reverse_kl import ReverseKL
from opd.record import scheduled


class JSD(Divergence):
    """JSD_β = β·KL(T‖M) + (1−β)·KL(S‖M), M = (1−β)p_S + βp_T, nats. f′ = (1−β) p_S (log p_S − log M).

    It falls to 0 towards both ends, so β = 0 *means* forward KL and β = 1 reverse KL, and the loss jumps there:
    JSD_0.9 is about a tenth of KL(S‖T). GKD, arXiv 2306.13649, Eq. 1.
    """

    type: Literal["jsd"] = "jsd"
    beta: scheduled(Annotated[float, Field(ge=0, le=1)]) = 0.5
    """Weight of the teacher in the mixture; 0 is forward KL, 1 is reverse KL."""

    def __call__(self, log_ps_nO: Outcome, log_pt_nO: Outcome) -> tuple[Outcome, Outcome]:
        if self.beta == 0:
            return ForwardKL()(log_ps_nO, log_pt_nO)
        if self.beta == 1:
            return ReverseKL()(log_ps_nO, log_pt_nO)
        log_m_nO = torch.logaddexp(log_ps_nO + math.log1p(-self.beta), log_pt_nO + math.log(self.beta))
        slope_nO = (1 - self.beta) * weigh(log_ps_nO.exp(), log_ps_nO - log_m_nO)
        return slope_nO + self.beta * weigh(log_pt_nO.exp(), log_pt_nO - log_m_nO), slope_nO
