"""From scores to weights: the one place where tokens are chosen."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from opd.batch import TokenTable
from opd.record import Record, Share, as_number, scheduled

Scope = Literal["rollout", "batch"]
Keep = Annotated[
    scheduled(Share),
    Field(description="Share of tokens to keep, max(1, ⌊keep·L⌋) of L; or a ramp {start, end, shape} over the run."),
]
Per = Annotated[
    Scope,
    Field(description="What competes for a place: the tokens of each rollout, or those of the whole batch."),
]
Draw = Callable[[int], torch.Generator]
"""rollout index → the generator that its draws come from (keyed by run seed, step, selector and rollout)."""


NEXT_TO_NOTHING = 1e-30
"""A gate's least weight: a token of weight 0 would not be counted, and a gate's term divides by all its tokens."""


def kept_count(total: int, share: float) -> int:
    """max(1, ⌊share·total + 1e-9⌋), and 0 of nothing.

    >>> kept_count(90, 0.7), kept_count(3, 0.1), kept_count(0, 0.5)
    (63, 1, 0)
    """
    return max(1, math.floor(share * total + 1e-9)) if total else 0


class TokenSelector(Record):
    """Gives every token of the table a weight ≥ 0, without gradient.

    `needs` names the statistics that it reads (`opd.head.statistics.STATISTICS`), and `reward` or `advantage` where it
    reads those.
    """

    type: str
    needs: ClassVar[tuple[str, ...]] = ()

    def weights(self, table: TokenTable, draw: Draw) -> Float[Tensor, " C"]:
        """The weight of each token, [C]."""
        raise NotImplementedError

    def count_before(self, lengths: list[int]) -> int | None:
        """How many tokens it will retain, if the rollouts' lengths alone decide that, rollout by rollout; else None.

        Where all selectors know their count beforehand, scoring and training are one pass.
        """
        raise NotImplementedError


class ScoreSelector(TokenSelector):
    """Ranks tokens by `score` and keeps a share of them; ties go to the earlier token."""

    keep: Keep = 0.5
    choose: Literal["top", "bottom", "sample", "gate"] = "top"
    """The highest scores, the lowest, a draw without replacement with p ∝ score, or the score itself as weight."""
    per: Per = "rollout"

    @model_validator(mode="after")
    def _gate_keeps_all(self) -> ScoreSelector:
        fields = type(self).model_fields
        if self.choose == "gate" and any(getattr(self, name) != fields[name].default for name in ("keep", "per")):
            raise ValueError(
                "choose: gate weighs every token by its score; 'keep' and 'per' have no effect, remove them"
            )
        return self

    def score(self, table: TokenTable) -> Float[Tensor, " C"]:
        """The score of each token, ≥ 0, [C]; higher is more worth training on."""
        raise NotImplementedError

    def weights(self, table: TokenTable, draw: Draw) -> Float[Tensor, " C"]:
        """1 for kept tokens and 0 for the rest; the score itself with `choose: gate`.

        A score that is NaN gives a weight that is NaN: the loss shows it, and the step is skipped.
        """
        score_C = self.scores(table)
        if self.choose == "gate":
            return score_C.clamp_min(NEXT_TO_NOTHING)
        rank_C = self._ranks(score_C, table, draw)
        weight_C = torch.zeros_like(score_C)
        for rows in table.by_rollout() if self.per == "rollout" else [torch.arange(len(table))]:
            best = torch.sort(rank_C[rows], descending=True, stable=True).indices
            weight_C[rows[best[: kept_count(len(rows), as_number(self.keep))]]] = 1
        return torch.where(score_C.isnan(), score_C, weight_C)

    def scores(self, table: TokenTable) -> Float[Tensor, " C"]:
        """The score of every token of the table, [C]."""
        return self.score(table)

    def count_before(self, lengths: list[int]) -> int | None:
        if self.choose == "gate" or self.per == "batch":
            return None
        return sum(kept_count(n, as_number(self.keep)) for n in lengths)

    def ranks_at_random(self) -> bool:
        """Whether places are drawn, with p ∝ score."""
        return self.choose == "sample"

    def _ranks(self, score_C: Tensor, table: TokenTable, draw: Draw) -> Tensor:
        if not self.ranks_at_random():
            return -score_C if self.choose == "bottom" else score_C
        # The largest log-weights plus Gumbel noise are a draw without replacement with p ∝ weight.
        return score_C.clamp_min(0).log() + gumbel(table, draw).to(score_C)


class ScaledSelector(ScoreSelector):
    """A score that is scaled over a scope: `score` is handed the tokens of one scope at a time."""

    scope: Scope = "batch"
    """What is scaled together: the optimizer step's tokens, or each rollout's. Never a micro-batch."""

    def scores(self, table: TokenTable) -> Float[Tensor, " C"]:
        if self.scope == "batch" or not len(table):
            return self.score(table)
        groups = table.by_rollout()
        score_C = torch.cat([self.score(table.rows(rows)) for rows in groups])
        return torch.empty_like(score_C).index_copy_(0, torch.cat(groups), score_C)

    def count_before(self, lengths: list[int]) -> int | None:
        return None if self.scope == "batch" else super().count_before(lengths)


def gumbel(table: TokenTable, draw: Draw) -> Float[Tensor, " C"]:
    """Standard Gumbel noise for each token, float64 [C]; a rollout's noise depends on its own generator alone."""
    noise_C = torch.empty(len(table), dtype=torch.float64)
    for rows in table.by_rollout():
        uniform = torch.rand(len(rows), generator=draw(int(table.rollout_C[rows[0]])), dtype=torch.float64)
        noise_C[rows] = -(-uniform.clamp_min(1e-300).log()).clamp_min(1e-300).log()
    return noise_C
