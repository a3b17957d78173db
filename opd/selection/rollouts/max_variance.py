"""D³S's sample level: the rollouts whose advantages differ most."""

from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from opd.batch import TokenTable
from opd.selection.rollouts.base import CountingSelector


class MaxVariance(CountingSelector):
    """The N rollouts whose advantages have the largest population variance. D³S, arXiv 2509.22115.

    The optimum is the k highest and the N − k lowest for some k; fixed halves are not optimal. At pass@1 nearly all of
    the paper's gain is the choice across groups. Where all advantages are equal it keeps the first N.
    """

    type: Literal["max_variance"] = "max_variance"
    needs: ClassVar[tuple[str, ...]] = ("advantage",)

    def of_group(
        self, table: TokenTable, members: Int[Tensor, " g"], count: int, generator: torch.Generator
    ) -> Int[Tensor, " n"]:
        return members[widest_subset(table.advantage_B[members], count)]


def widest_subset(value_G: Float[Tensor, " G"], count: int) -> Int[Tensor, " n"]:
    """Indices, ascending, of the `count` values of largest population variance, in O(G log G).

    One stable descending sort, prefix sums, and a scan of k; variances within 1e-12 of the best tie, and the largest k
    of them wins.

    >>> widest_subset(torch.tensor([-0.5, -0.5, 3.0, 0.2]), 3).tolist()
    [0, 1, 2]
    """
    if value_G.isnan().any():
        return torch.arange(min(count, len(value_G)))  # the loss shows it: see plan
    ordered = value_G.double().sort(descending=True, stable=True)
    total, count = len(value_G), min(count, len(value_G))
    sums, squares = (torch.cat([x.new_zeros(1), x.cumsum(0)]) for x in (ordered.values, ordered.values**2))
    k = torch.arange(count + 1)
    parts = [at[k] + at[total] - at[total - count + k] for at in (sums, squares)]
    variance_k = parts[1] / max(1, count) - (parts[0] / max(1, count)) ** 2
    best = variance_k.max()
    highest = int((variance_k >= best - 1e-12 * best.abs().clamp_min(1)).nonzero().max())
    return torch.cat([ordered.indices[:highest], ordered.indices[total - count + highest :]]).sort().values
