"""Tokens that the student itself finds unlikely."""

from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from opd.batch import TokenTable
from opd.selection.base import Keep, ScoreSelector


class Surprisal(ScoreSelector):
    """Score −log p_S of the sampled token, nats: the top share is the least likely tokens.

    With `constant_penalty` at 20 % it is the teacher-free control of arXiv 2608.31046. It needs no teacher.
    """

    type: Literal["surprisal"] = "surprisal"
    keep: Keep = 0.2
    needs: ClassVar[tuple[str, ...]] = ("student_logprob",)

    def score(self, table: TokenTable) -> Float[Tensor, " C"]:
        return -table["student_logprob"]
