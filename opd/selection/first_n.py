"""The first tokens of each rollout: a control for every rule that favours openings."""

from typing import Literal

from jaxtyping import Float
from pydantic import PositiveInt
from torch import Tensor

from opd.batch import TokenTable
from opd.selection.base import Draw, TokenSelector


class FirstN(TokenSelector):
    """Weight 1 for the first `tokens` trained tokens of each rollout. Never sees how an answer ends."""

    type: Literal["first_n"] = "first_n"
    tokens: PositiveInt = 100
    """Tokens of each rollout."""

    def weights(self, table: TokenTable, draw: Draw) -> Float[Tensor, " C"]:
        return (table.position_C < self.tokens).to(table.sampler_logprob_C)

    def count_before(self, lengths: list[int]) -> int | None:
        return sum(min(n, self.tokens) for n in lengths)
