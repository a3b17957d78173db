"""Tokens where the student is unsure."""

from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from opd.batch import TokenTable
from opd.selection.base import ScoreSelector


class Entropy(ScoreSelector):
    """Score H_S, nats. `choose: sample` draws with p ∝ H_S: the "entropy" columns of TIP, arXiv 2604.14084 v4.

    `choose: top` is another rule, with no published result. Blind to tokens where the student is sure and wrong.
    """

    type: Literal["entropy"] = "entropy"
    choose: Literal["top", "bottom", "sample", "gate"] = "sample"
    """The draw is the paper's rule; top, bottom and gate (weight H_S) are ours."""
    needs: ClassVar[tuple[str, ...]] = ("student_entropy",)

    def score(self, table: TokenTable) -> Float[Tensor, " C"]:
        return table["student_entropy"]
