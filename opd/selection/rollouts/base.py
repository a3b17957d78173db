"""What a rollout selector is, and the count and the groups that several share."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar, Literal

import torch
from jaxtyping import Int
from pydantic import PositiveInt, model_validator
from torch import Tensor

from opd.batch import TokenTable
from opd.record import Ramp, Record, as_number, scheduled

DrawRollouts = Callable[[], torch.Generator]
"""The generator that a step's draws of rollouts come from."""


class RolloutSelector(Record):
    """Chooses which of the step's rollouts train, from the table's columns per rollout, without gradient.

    With `reward` or nothing in `needs` it runs before the teacher is asked, so that a dropped rollout costs no call;
    with `advantage: log_ratio` in the recipe, after.
    """

    type: str
    needs: ClassVar[tuple[str, ...]] = ()

    def choose(self, table: TokenTable, draw: DrawRollouts) -> Int[Tensor, " B"]:
        """Indices of the rollouts that stay, ascending."""
        raise NotImplementedError


class CountingSelector(RolloutSelector):
    """Keeps a fixed number of rollouts: of each prompt's or of all the step's together."""

    keep_rollouts: scheduled(PositiveInt)
    """N of D³S: how many stay, of each group or of the whole step; or a ramp {start, end, shape}."""
    per: Literal["prompt", "step"] = "prompt"
    """prompt: N of each prompt's rollouts. step: N of the whole step's, whichever prompts they answer (D³S's Cross)."""
    multiple: PositiveInt = 1
    """N is rounded, half up, to a multiple of this, and to no fewer."""

    @model_validator(mode="after")
    def _multiple_is_not_ignored(self) -> CountingSelector:
        fixed = not isinstance(self.keep_rollouts, Ramp)
        if fixed and self.keep_rollouts % self.multiple:
            raise ValueError(f"keep_rollouts {self.keep_rollouts} is no multiple of {self.multiple}; make them agree")
        return self

    def count(self, largest: int) -> int:
        """N: rounded half up to `multiple`, at least one multiple, at most `largest`."""
        rounded = math.floor(as_number(self.keep_rollouts) / self.multiple + 0.5) * self.multiple
        return min(max(rounded, self.multiple), largest)

    def choose(self, table: TokenTable, draw: DrawRollouts) -> Int[Tensor, " B"]:
        generator = draw()
        chosen = [self.of_group(table, members, self.count(len(members)), generator) for members in self.groups(table)]
        return torch.cat(chosen).sort().values if chosen else torch.zeros(0, dtype=torch.long)

    def of_group(
        self, table: TokenTable, members: Int[Tensor, " g"], count: int, generator: torch.Generator
    ) -> Int[Tensor, " n"]:
        """The `count` members that stay."""
        raise NotImplementedError

    def groups(self, table: TokenTable) -> list[Int[Tensor, " g"]]:
        """The rollouts that compete with one another, in order."""
        everyone = torch.arange(len(table.group_B))
        if self.per == "step":
            return [everyone] if len(everyone) else []
        return [everyone[table.group_B == group] for group in table.group_B.unique()]
