"""Reverse KL: the student is charged for what it does and the teacher would not."""

from typing import ClassVar, Literal

from torch import Tensor

from opd.objectives.base import LogProbs, Outcome
from opd.objectives.divergence import Divergence


class ReverseKL(Divergence):
    """KL(S‖T) = Σ p_S (log p_S − log p_T), nats. f′ = f + p_S.

    Mode-seeking; the objective of on-policy distillation in MiniLLM (arXiv 2306.08543) and TIP (arXiv 2604.14084).
    """

    type: Literal["reverse_kl"] = "reverse_kl"
    sums: ClassVar[str | None] = "reverse_kl"

    def __call__(self, student: LogProbs, teacher: LogProbs) -> tuple[Outcome, Outcome]:
        value_nO = student.p_nO * (student.log_nO - teacher.log_nO)
        return value_nO, value_nO + student.p_nO

    def totals(self, statistic_n: Tensor) -> tuple[Tensor, Tensor]:
        return statistic_n, statistic_n + 1
