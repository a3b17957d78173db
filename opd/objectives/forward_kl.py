"""Forward KL: the student is charged for what the teacher would do and it would not."""

from typing import Literal

from opd.head.tile import weigh
from opd.objectives.base import Outcome
from opd.objectives.divergence import Divergence


class ForwardKL(Divergence):
    """KL(T‖S) = Σ p_T (log p_T − log p_S), nats. f′ = −p_T.

    Mass-covering: plain knowledge distillation, here on the student's own rollouts (GKD, arXiv 2306.13649).
    """

    type: Literal["forward_kl"] = "forward_kl"

    def __call__(self, log_ps_nO: Outcome, log_pt_nO: Outcome) -> tuple[Outcome, Outcome]:
        pt_nO = log_pt_nO.exp()
        return weigh(pt_nO, log_pt_nO - log_ps_nO), -pt_nO
