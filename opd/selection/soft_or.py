"""Tokens where the student is unsure or the teacher disagrees: TIP's Soft-OR."""

from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from opd.batch import TokenTable
from opd.record import Share
from opd.selection.base import ScaledSelector
from opd.selection.scaling import clip_at_quantile, min_max, scaled_entropy, soft_or


class SoftOr(ScaledSelector):
    """Score 1 − (1 − ĥ)(1 − δ̂): high where the student is unsure *or* the teacher disagrees. TIP, arXiv 2604.14084 v4.

    ĥ: H_S clipped at its `clip` quantile, δ̂: KL(S‖T), each scaled to [0, 1] over `scope`. (The paper divides H_S by
    ln V first; the scaling takes that out again.) One outlier flattens δ̂: `clip_divergence` clips it too.
    """

    type: Literal["soft_or"] = "soft_or"
    clip: Share = 0.98
    """Quantile of the scope at which the entropy is clipped."""
    clip_divergence: Share = 1.0
    """Quantile at which the divergence is clipped; 1 (the paper) clips nothing."""
    needs: ClassVar[tuple[str, ...]] = ("student_entropy", "reverse_kl")

    def score(self, table: TokenTable) -> Float[Tensor, " C"]:
        h_C = scaled_entropy(table["student_entropy"], clip=self.clip)
        d_C = min_max(clip_at_quantile(table["reverse_kl"], self.clip_divergence))
        return soft_or(h_C, d_C)
