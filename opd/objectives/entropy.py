"""The student's own entropy: to be lowered (TSD-KD), or rewarded."""

from typing import ClassVar, Literal

from torch import Tensor

from opd.objectives.base import DenseObjective, LogProbs, Outcome


class EntropyObjective(DenseObjective):
    """±H_S = ∓Σ p_S log p_S, nats. f′ = f ∓ p_S. Needs no teacher.

    `minimise` is TSD-KD's EntropyMin (arXiv 2603.13260), on the student's least sure tokens; `bonus` pays for entropy,
    against its collapse. Either runs away where nothing else holds the student.
    """

    type: Literal["entropy"] = "entropy"
    sums: ClassVar[str | None] = "student_entropy"
    reads_teacher: ClassVar[bool] = False
    mode: Literal["minimise", "bonus"] = "minimise"
    """Whether entropy costs or pays."""

    def __call__(self, student: LogProbs, teacher: LogProbs | None) -> tuple[Outcome, Outcome]:
        sign = -1.0 if self.mode == "minimise" else 1.0
        value_nO = sign * student.p_nO * student.log_nO
        return value_nO, value_nO + sign * student.p_nO

    def totals(self, statistic_n: Tensor) -> tuple[Tensor, Tensor]:
        sign = 1.0 if self.mode == "minimise" else -1.0
        return sign * statistic_n, sign * (statistic_n - 1)
