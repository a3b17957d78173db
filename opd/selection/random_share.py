"""A random share of the tokens: the control beside every selector."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from opd.batch import TokenTable
from opd.selection.base import ScoreSelector


class RandomShare(ScoreSelector):
    """Keeps a uniformly drawn share of the tokens, without replacement, with the counts of any other selector.

    A rule that does not beat this at the same share has shown nothing about its score.
    """

    type: Literal["random"] = "random"
    choose: Literal["sample"] = "sample"
    """Always a draw: every token has the same score."""

    def score(self, table: TokenTable) -> Float[Tensor, " C"]:
        return torch.ones_like(table.sampler_logprob_C)
