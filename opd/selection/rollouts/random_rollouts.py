"""A random choice of rollouts: the control beside every rollout selector."""

from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

from opd.batch import TokenTable
from opd.selection.rollouts.base import CountingSelector


class RandomRollouts(CountingSelector):
    """N drawn uniformly, without replacement: the control of `max_variance` at the same N."""

    type: Literal["random"] = "random"

    def of_group(
        self, table: TokenTable, members: Int[Tensor, " g"], count: int, generator: torch.Generator
    ) -> Int[Tensor, " n"]:
        return members[torch.randperm(len(members), generator=generator)[:count]]
