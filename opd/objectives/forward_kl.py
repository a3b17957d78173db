"""Forward KL: the student is charged for what the teacher would do and it would not."""

from typing import ClassVar, Literal

import torch
from torch import Tensor

from opd.objectives.base import LogProbs, Outcome
from opd.objectives.divergence import Divergence


class ForwardKL(Divergence):
    """KL(T‖S) = Σ p_T (log p_T − log p_S), nats. f′ = −p_T.

    Mass-covering: plain knowledge distillation, here on the student's own rollouts (GKD, arXiv 2306.13649).
    """

    type: Literal["forward_kl"] = "forward_kl"
    sums: ClassVar[str | None] = "forward_kl"

    def __call__(self, student: LogProbs, teacher: LogProbs) -> tuple[Outcome, Outcome]:
        return teacher.p_nO * (teacher.log_nO - student.log_nO), -teacher.p_nO

    def totals(self, statistic_n: Tensor) -> tuple[Tensor, Tensor]:
        return statistic_n, -torch.ones_like(statistic_n)
