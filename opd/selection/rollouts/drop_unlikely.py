"""Without the rollouts that the student itself finds least likely."""

from typing import Annotated, Literal

from jaxtyping import Int
from pydantic import Field
from torch import Tensor

from opd.batch import TokenTable
from opd.record import as_number, scheduled
from opd.selection.rollouts.base import DrawRollouts, RolloutSelector


class DropUnlikely(RolloutSelector):
    """Drops the ⌊share·B⌋ rollouts with the lowest mean sampler log-prob a token; the later one at a tie.

    A control for rules that keep the extremes: unlikely rollouts are often broken ones, not instructive ones.
    """

    type: Literal["drop_unlikely"] = "drop_unlikely"
    share: scheduled(Annotated[float, Field(ge=0, lt=1)]) = 0.1
    """Share of the step's rollouts that is dropped; or a ramp {start, end, shape}."""

    def choose(self, table: TokenTable, draw: DrawRollouts) -> Int[Tensor, " B"]:
        mean_B = table.mean_by_rollout(table.sampler_logprob_C)
        dropped = int(as_number(self.share) * len(mean_B) + 1e-9)
        return mean_B.sort(descending=True, stable=True).indices[: len(mean_B) - dropped].sort().values
