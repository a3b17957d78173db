"""Every token: plain on-policy distillation, the baseline of every claim."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from opd.batch import TokenTable
from opd.selection.base import Draw, TokenSelector


class AllTokens(TokenSelector):
    """Weight 1 for every trained token, the end token included."""

    type: Literal["all"] = "all"

    def weights(self, table: TokenTable, draw: Draw) -> Float[Tensor, " C"]:
        return torch.ones_like(table.sampler_logprob_C)

    def count_before(self, lengths: list[int]) -> int | None:
        return sum(lengths)
