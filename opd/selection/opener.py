"""The opening of each rollout, up to a share of its entropy."""

from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from opd.batch import TokenTable
from opd.record import Share, as_number, scheduled
from opd.selection.base import Draw, TokenSelector


class Opener(TokenSelector):
    """Weight 1 up to the smallest m with Σ_{t≤m} H_S ≥ c·Σ H_S, the crossing token included. TSD-KD, arXiv 2603.13260.

    m = 1 where all entropies are 0. Its public code takes one m for a whole micro-batch and drops the crossing token.
    """

    type: Literal["opener"] = "opener"
    entropy_share: scheduled(Share) = 0.1
    """c, the share of the rollout's entropy that the opening holds."""
    needs: ClassVar[tuple[str, ...]] = ("student_entropy",)

    def weights(self, table: TokenTable, draw: Draw) -> Float[Tensor, " C"]:
        weight_C = torch.zeros_like(table["student_entropy"])
        for rows in table.by_rollout():
            sum_L = table["student_entropy"][rows].double().cumsum(0)
            before = int((sum_L < as_number(self.entropy_share) * sum_L[-1]).sum())
            weight_C[rows[: before + 1]] = 1
        return torch.where(table["student_entropy"].isnan(), table["student_entropy"], weight_C)

    def count_before(self, lengths: list[int]) -> int | None:
        return None
