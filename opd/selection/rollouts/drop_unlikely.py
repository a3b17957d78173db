"""Without the rollouts that the student itself finds least likely."""

from typing import Annotated, Literal

import torch
from jaxtyping import Int
from pydantic import Field
from torch import Tensor

from opd.batch import TokenTable
from opd.record import as_number, scheduled
from opd.selection.rollouts.base import DrawRollouts, RolloutSelector


class DropUnlikely(RolloutSelector):
    """Drops the ⌊share·B⌋ rollouts with the lowest mean sampler log-prob a token; first those without one.

    Of equal ones the later goes.

    A control for rules that keep the extremes: unlikely rollouts are often broken ones, not instructive ones.
    """

    type: Literal["drop_unlikely"] = "drop_unlikely"
    share: scheduled(Annotated[float, Field(ge=0, lt=1)]) = 0.1
    """Share of the step's rollouts that is dropped; or a ramp {start, end, shape}."""

    def choose(self, table: TokenTable, draw: DrawRollouts) -> Int[Tensor, " B"]:
        mean_B = table.mean_by_rollout(table.sampler_logprob_C).masked_fill(table.length_B == 0, -torch.inf)
        dropped = int(as_number(self.share) * len(mean_B) + 1e-9)
        return mean_B.sort(descending=True, stable=True).indices[: len(mean_B) - dropped].sort().values
