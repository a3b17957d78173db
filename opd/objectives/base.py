"""What every dense objective has in common."""

from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from opd.record import Record

Tile = Float[Tensor, "n V"]


class DenseObjective(Record):
    """A loss that is a sum over the vocabulary of an elementwise function f(log p_S, log p_T).

    Calling it gives value f and slope f′ = ∂f/∂log p_S, both [n, V], log p_S taken as a free variable. The head sums f
    over the vocabulary and forms the gradient with respect to the logits, f′ − p_S·Σf′.
    """

    type: str
    mixes_tokens: ClassVar[bool] = False
    """Whether a token's value depends on other tokens (then the step needs the whole table first)."""

    def __call__(self, log_ps_nV: Tile, log_pt_nV: Tile) -> tuple[Tile, Tile]:
        """(f, f′) of a tile of rows, each [n, V]."""
        raise NotImplementedError
