"""Forward KL: the student is charged for what the teacher would do and it does not."""

from typing import Literal

from opd.objectives.base import DenseObjective, Tile


class ForwardKL(DenseObjective):
    """KL(T‖S) = Σ p_T (log p_T − log p_S), nats. f′ = −p_T.

    Mass-covering; the classical objective of distillation (arXiv 1503.02531).
    """

    type: Literal["forward_kl"] = "forward_kl"

    def __call__(self, log_ps_nV: Tile, log_pt_nV: Tile) -> tuple[Tile, Tile]:
        pt_nV = log_pt_nV.exp()
        return pt_nV * (log_pt_nV - log_ps_nV), -pt_nV
