"""Tokens where the teacher disagrees."""

from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from opd.batch import TokenTable
from opd.selection.base import ScoreSelector


class DivergenceSelector(ScoreSelector):
    """Score KL(S‖T), nats: TIP's divergence-only arm, arXiv 2604.14084 v4. Blind to where the student is unsure."""

    type: Literal["divergence"] = "divergence"
    needs: ClassVar[tuple[str, ...]] = ("reverse_kl",)

    def score(self, table: TokenTable) -> Float[Tensor, " C"]:
        return table["reverse_kl"]
