"""D³S: tokens where the student is unsure, in rollouts whose outcome stands out."""

from typing import Literal

import torch
from jaxtyping import Float
from pydantic import model_validator
from torch import Tensor

from opd.batch import TokenTable
from opd.selection.base import Per, ScaledSelector
from opd.selection.scaling import min_max, scaled_entropy, soft_or

NEEDS = {
    "product": ("student_entropy",),
    "soft_or": ("student_entropy", "reverse_kl"),
    "entropy": ("student_entropy",),
    "divergence": ("reverse_kl",),
    "random": (),
}


class D3S(ScaledSelector):
    """Score |A|·H_S, A the rollout's advantage, top share over the whole batch. D³S, arXiv 2509.22115.

    Confident-but-wrong tokens score ≈ 0, so others are offered: |A|·soft_or, or entropy, divergence and random alone.
    With one A a rollout, `per: rollout` makes |A| irrelevant. Where A = 0 (a prompt's rollouts are all right, or all
    wrong) every token scores 0, and of places that are left the earliest in the table get them: a ramp of keep that
    ends high trains on such prompts.
    """

    type: Literal["d3s"] = "d3s"
    token_score: Literal["product", "soft_or", "entropy", "divergence", "random"] = "product"
    """product is |A|·H_S; soft_or is |A|·(1 − (1−ĥ)(1−δ̂)); the last three leave the advantage out."""
    per: Per = "batch"

    @model_validator(mode="after")
    def _nothing_ignored(self) -> "D3S":
        if self.scope != "batch" and self.token_score != "soft_or":
            raise ValueError(
                f"'scope' scales soft_or and has no effect with token_score {self.token_score!r}; remove it"
            )
        if self.token_score == "random" and self.choose != "top":
            raise ValueError("'choose' has no effect with token_score 'random', which draws; remove it")
        return self

    @property
    def needs(self) -> tuple[str, ...]:
        return NEEDS[self.token_score] + (("advantage",) if self.token_score in ("product", "soft_or") else ())

    def score(self, table: TokenTable) -> Float[Tensor, " C"]:
        match self.token_score:
            case "entropy":
                return table["student_entropy"]
            case "divergence":
                return table["reverse_kl"]
            case "random":
                return torch.ones_like(table.sampler_logprob_C)
        size_C = table.advantage_B.abs()[table.rollout_C].to(table["student_entropy"])
        if self.token_score == "product":
            return size_C * table["student_entropy"]
        return size_C * soft_or(scaled_entropy(table["student_entropy"]), min_max(table["reverse_kl"]))

    def ranks_at_random(self) -> bool:
        """Whether places are drawn: every token has the same score."""
        return self.choose == "sample" or self.token_score == "random"
