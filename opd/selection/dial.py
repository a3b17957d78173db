"""DIAL: tokens whose own probability the teacher would change."""

from typing import Annotated, ClassVar, Literal

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from opd.batch import TokenTable
from opd.head.settings import LEAST
from opd.selection.base import Keep, ScoreSelector


class Dial(ScoreSelector):
    """Score |log q − log p|^{1−β}·|q − p|^β of the sampled token, p the student's, q the teacher's probability.

    arXiv 2610.11659, which finds β = 1 best and keeps 40 % of each rollout. Two log-probs a token are all it needs, so
    any teacher will do; it sees nothing of the tokens that were not sampled.
    """

    type: Literal["dial"] = "dial"
    keep: Keep = 0.4
    beta: Annotated[float, Field(ge=0, le=1)] = 1.0
    """β: 0 ranks by the log-ratio, 1 by the difference."""
    needs: ClassVar[tuple[str, ...]] = ("student_logprob", "teacher_logprob")

    def score(self, table: TokenTable) -> Float[Tensor, " C"]:
        log_p_C, log_q_C = (table[f"{who}_logprob"].clamp_min(LEAST) for who in ("student", "teacher"))
        ratio_C, difference_C = (log_q_C - log_p_C).abs(), (log_q_C.exp() - log_p_C.exp()).abs()
        return ratio_C ** (1 - self.beta) * difference_C**self.beta
