"""A weight for every token: more where the student is less sure than the teacher."""

from typing import ClassVar, Literal

from jaxtyping import Float
from pydantic import PositiveFloat
from torch import Tensor

from opd.batch import TokenTable
from opd.selection.base import ScoreSelector


class SoftGate(ScoreSelector):
    """Score σ((H_S − H_T)/τ), by default the weight itself. TSD-KD's Direct, arXiv 2603.13260, whose τ is unpublished.

    A term divides by its number of tokens, not by the sum of the gates.
    """

    type: Literal["soft_gate"] = "soft_gate"
    choose: Literal["top", "bottom", "sample", "gate"] = "gate"
    """gate is the paper's; the others keep a share by the same score."""
    tau: PositiveFloat = 1.0
    """τ, nats: how sharp the gate is."""
    needs: ClassVar[tuple[str, ...]] = ("student_entropy", "teacher_entropy")

    def score(self, table: TokenTable) -> Float[Tensor, " C"]:
        return ((table["student_entropy"] - table["teacher_entropy"]) / self.tau).sigmoid()
