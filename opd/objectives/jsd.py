"""The generalised Jensen–Shannon divergence, between forward and reverse KL."""

import math
from typing import Annotated, Literal

import torch
from pydantic import Field

from opd.objectives.base import DenseObjective, Tile
from opd.objectives.forward_kl import ForwardKL
from opd.objectives.reverse_kl import ReverseKL


class JSD(DenseObjective):
    """JSD_β = β·KL(T‖M) + (1−β)·KL(S‖M), M = (1−β)p_S + βp_T, nats. f′ = (1−β) p_S (log p_S − log M).

    It falls to 0 towards both ends, so β = 0 *means* forward KL and β = 1 reverse KL, and the loss jumps there:
    JSD_0.9 is about a tenth of KL(S‖T). GKD, arXiv 2306.13649, Eq. 1.
    """

    type: Literal["jsd"] = "jsd"
    beta: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Weight of the teacher in the mixture; 0 is forward KL, 1 is reverse KL."""

    def __call__(self, log_ps_nV: Tile, log_pt_nV: Tile) -> tuple[Tile, Tile]:
        if self.beta == 0:
            return ForwardKL()(log_ps_nV, log_pt_nV)
        if self.beta == 1:
            return ReverseKL()(log_ps_nV, log_pt_nV)
        log_m_nV = torch.logaddexp(log_ps_nV + math.log1p(-self.beta), log_pt_nV + math.log(self.beta))
        slope_nV = (1 - self.beta) * log_ps_nV.exp() * (log_ps_nV - log_m_nV)
        return slope_nV + self.beta * log_pt_nV.exp() * (log_pt_nV - log_m_nV), slope_nV
