"""Tokens where the student is sure and the teacher disagrees: TIP's third quadrant."""

from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from opd.batch import TokenTable
from opd.record import Share
from opd.selection.base import Keep, ScaledSelector
from opd.selection.scaling import scaled_entropy


class Q3(ScaledSelector):
    """Score KL(T‖S)·(1 − ĥ): *forward* KL ranks, whatever trains. TIP, arXiv 2604.14084 v4.

    ĥ: H_S clipped at its `clip` quantile and scaled to [0, 1] over `scope`. The paper keeps 10 or 20 %.
    """

    type: Literal["q3"] = "q3"
    keep: Keep = 0.1
    clip: Share = 0.98
    """Quantile of the scope at which the entropy is clipped."""
    needs: ClassVar[tuple[str, ...]] = ("student_entropy", "forward_kl")

    def score(self, table: TokenTable) -> Float[Tensor, " C"]:
        return table["forward_kl"] * (1 - scaled_entropy(table["student_entropy"], clip=self.clip))
