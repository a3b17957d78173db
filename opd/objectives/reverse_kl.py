"""Reverse KL: the student is charged for what it does and the teacher would not."""

from typing import Literal

from opd.head.tile import weigh
from opd.objectives.base import Outcome
from opd.objectives.divergence import Divergence


class ReverseKL(Divergence):
    """KL(S‖T) = Σ p_S (log p_S − log p_T), nats. f′ = f + p_S.

    Mode-seeking; the objective of on-policy distillation in MiniLLM (arXiv 2306.08543) and TIP (arXiv 2604.14084).
    """

    type: Literal["reverse_kl"] = "reverse_kl"

    def __call__(self, log_ps_nO: Outcome, log_pt_nO: Outcome) -> tuple[Outcome, Outcome]:
        ps_nO = log_ps_nO.exp()
        value_nO = weigh(ps_nO, log_ps_nO - log_pt_nO)
        return value_nO, value_nO + ps_nO
