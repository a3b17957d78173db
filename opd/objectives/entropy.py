"""The student's own entropy: to be lowered (TSD-KD), or rewarded."""

from typing import ClassVar, Literal

from opd.head.tile import weigh
from opd.objectives.base import DenseObjective, Outcome


class EntropyObjective(DenseObjective):
    """±H_S = ∓Σ p_S log p_S, nats. f′ = f ∓ p_S. Needs no teacher.

    `minimise` is TSD-KD's EntropyMin (arXiv 2603.13260), on the student's least sure tokens; `bonus` pays for entropy,
    against its collapse. Either runs away where nothing else holds the student.
    """

    type: Literal["entropy"] = "entropy"
    reads_teacher: ClassVar[bool] = False
    mode: Literal["minimise", "bonus"] = "minimise"
    """Whether entropy costs or pays."""

    def __call__(self, log_ps_nO: Outcome, log_pt_nO: Outcome | None) -> tuple[Outcome, Outcome]:
        sign = -1.0 if self.mode == "minimise" else 1.0
        ps_nO = log_ps_nO.exp()
        value_nO = sign * weigh(ps_nO, log_ps_nO)
        return value_nO, value_nO + sign * ps_nO
