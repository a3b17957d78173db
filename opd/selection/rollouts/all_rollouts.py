"""Every rollout: the baseline."""

from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

from opd.batch import TokenTable
from opd.selection.rollouts.base import DrawRollouts, RolloutSelector


class AllRollouts(RolloutSelector):
    """Every rollout stays."""

    type: Literal["all"] = "all"

    def choose(self, table: TokenTable, draw: DrawRollouts) -> Int[Tensor, " B"]:
        return torch.arange(len(table.group_B))
