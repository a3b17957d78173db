"""The teacher-free control: push unlikely tokens down, whatever the teacher says."""

from typing import ClassVar, Literal

from jaxtyping import Float
from pydantic import PositiveFloat
from torch import Tensor

from opd.batch import TokenTable
from opd.objectives.base import ChosenObjective, mean_over


class ConstantPenalty(ChosenObjective):
    """penalty · log p_S(y), mean over the retained tokens, nats: a policy gradient whose advantage is −penalty.

    With `surprisal` at 20 % this is the teacher-free arm of arXiv 2608.31046, reported to match on-policy distillation:
    a method that does not beat it has not shown that it uses the teacher.
    """

    type: Literal["constant_penalty"] = "constant_penalty"
    needs: ClassVar[tuple[str, ...]] = ("student_logprob",)
    penalty: PositiveFloat = 0.5
    """The negative advantage."""

    def loss(self, log_p_CK: Float[Tensor, "C 1"], table: TokenTable, weight_C: Float[Tensor, " C"]) -> Tensor:
        return mean_over(self.penalty * log_p_CK.squeeze(-1), weight_C)
