"""What terms make of one block: its part of every Σf and Σf′, and the gradient. Works in the sense of `kernels.py`.

Both read `student` and (where there is one) `teacher`, logits or products [n, b], and of each model its normaliser in
units of logits as two numbers, `student_high` and `student_low` [n]: the second is what the first rounds away.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from opd.head.kernels import Given
from opd.head.weights import working_dtype
from opd.objectives.base import DenseObjective, LogProbs

WHO = ("student", "teacher")


def log_probs(given: Given, temperature: float) -> tuple[LogProbs, LogProbs | None]:
    """Both models' log-probabilities of a block, in the working dtype."""
    student, teacher = (LogProbs(_log_p(given, who, temperature)) if who in given else None for who in WHO)
    return student, teacher


def _log_p(given: Given, who: str, temperature: float) -> Tensor:
    logits_nb = given[who].to(working_dtype(given[who].dtype))
    less_nb = (logits_nb - given[f"{who}_high"][:, None]).sub_(given[f"{who}_low"][:, None])
    return less_nb if temperature == 1.0 else less_nb.div_(temperature)


@dataclass(frozen=True)
class BlockTotals:
    """Σf and Σf′ of each objective over the block, [n] in float64, named `value_0`, `slope_0`, `value_1`, …"""

    objectives: tuple[DenseObjective, ...]
    temperature: float

    def __call__(self, given: Given) -> Given:
        both, found = log_probs(given, self.temperature), {}
        for i, objective in enumerate(self.objectives):
            for name, part_nb in zip(("value", "slope"), objective(*both), strict=True):
                found[f"{name}_{i}"] = part_nb.sum(-1).double()
        return found


@dataclass(frozen=True)
class BlockGradient:
    """Σ weight · f′ − p_S · pull in the place of the student's logits, and `mass` Σ p_S [n] where `weighs`.

    Reads `pull` and `weight_0`, `weight_1`, … [n] too, of each objective in its order.
    """

    objectives: tuple[DenseObjective, ...]
    temperature: float
    weighs: bool

    def __call__(self, given: Given) -> Given:
        student, teacher = log_probs(given, self.temperature)
        found = {"mass": student.p_nO.sum(-1)} if self.weighs else {}
        grad_nb = student.p_nO * -given["pull"][:, None]
        for i, objective in enumerate(self.objectives):
            grad_nb.addcmul_(objective(student, teacher)[1], given[f"weight_{i}"][:, None])
        given["student"].copy_(grad_nb)
        return found
