"""Reverse KL: the student is charged for what it does and the teacher would not."""

from typing import Literal

from opd.objectives.base import DenseObjective, Tile


class ReverseKL(DenseObjective):
    """KL(S‖T) = Σ p_S (log p_S − log p_T), nats. f′ = f + p_S.

    Mode-seeking; the objective of on-policy distillation in MiniLLM (arXiv 2306.08543) and TIP (arXiv 2604.14084).
    """

    type: Literal["reverse_kl"] = "reverse_kl"

    def __call__(self, log_ps_nV: Tile, log_pt_nV: Tile) -> tuple[Tile, Tile]:
        ps_nV = log_ps_nV.exp()
        value_nV = ps_nV * (log_ps_nV - log_pt_nV)
        return value_nV, value_nV + ps_nV
