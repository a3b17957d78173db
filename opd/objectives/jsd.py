"""The generalised Jensen–Shannon divergence, between forward and reverse KL."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from opd.objectives.base import LogProbs, Outcome
from opd.objectives.divergence import Divergence, log
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

    @property
    def _end(self) -> Divergence | None:
        return {0: ForwardKL(), 1: ReverseKL()}.get(self.beta)

    @property
    def sums(self) -> str | None:
        return None if self._end is None else self._end.sums

    def totals(self, statistic_n: Tensor) -> tuple[Tensor, Tensor]:
        return self._end.totals(statistic_n)

    def __call__(self, student: LogProbs, teacher: LogProbs) -> tuple[Outcome, Outcome]:
        if self._end is not None:
            return self._end(student, teacher)
        log_m_nO = log(torch.lerp(student.p_nO, teacher.p_nO, self.beta))
        slope_nO = (1 - self.beta) * student.p_nO * (student.log_nO - log_m_nO)
        return torch.add(slope_nO, teacher.p_nO * (teacher.log_nO - log_m_nO), alpha=self.beta), slope_nO
