"""NKD's part beside the target: the other classes, renormalised."""

from typing import Literal

from pydantic import PositiveFloat

from opd.head.outcomes import Outcomes, WithoutTarget
from opd.objectives.base import DenseObjective, LogProbs, Outcome


class NKDNonTarget(DenseObjective):
    """−γλ² Σ_{i≠t} N(T^λ)_i log N(S^λ)_i, N = softmax(logits/λ) over the V − 1 classes other than the target t, nats.

    f′ = −γλ² N(T^λ). arXiv 2303.13005, Eq. 8; the λ² is the paper's. Add `nkd_target` for the rest of NKD.
    """

    type: Literal["nkd_non_target"] = "nkd_non_target"
    target: Literal["sampled", "teacher"] = "sampled"
    """The sampled token, or the teacher's likeliest."""
    gamma: PositiveFloat = 1.5
    """γ, the part's weight."""
    temperature: PositiveFloat = 1.0
    """λ; it divides both models' logits here, in place of the recipe's loss_temperature."""

    @property
    def outcomes(self) -> Outcomes:
        return WithoutTarget(self.target, self.temperature)

    def __call__(self, student: LogProbs, teacher: LogProbs) -> tuple[Outcome, Outcome]:
        slope_nO = -self.gamma * self.temperature**2 * teacher.p_nO
        return slope_nO * student.log_nO, slope_nO
