"""Small inputs for the mathematics: hidden states with a known distribution, token tables, named draws."""

from typing import Any

import torch
from torch import Tensor

from opd.batch import TokenTable
from opd.head.statistics import MEASURED, row_statistics
from opd.head.tile import HeadSettings
from opd.head.weights import HeadWeights, HiddenStates
from opd.seeds import generator_for

TILE = 1 << 20


def states(logits_NV: Any, dtype: torch.dtype = torch.float64) -> HiddenStates:
    """Hidden states whose logits are the given ones: an identity for a head."""
    hidden_NV = torch.as_tensor(logits_NV, dtype=dtype)
    return HiddenStates(hidden_NV, HeadWeights(torch.eye(hidden_NV.shape[1], dtype=dtype)))


def random_states(rows: int, hidden: int, vocabulary: int, *, seed: int, **head: Any) -> HiddenStates:
    """Random float64 states and head, with a bias; `head` holds softcap and scale."""
    generator = torch.Generator().manual_seed(seed)
    hidden_NH, weight_VH, bias_V = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in ((rows, hidden), (vocabulary, hidden), (vocabulary,))
    )
    return HiddenStates(hidden_NH, HeadWeights(weight_VH, bias_V, **head))


def statistics(student: HiddenStates, teacher: HiddenStates | None, needs: Any = MEASURED, **settings: Any) -> dict:
    """row_statistics with everything else at its plainest; `settings` are HeadSettings', and token_id_N."""
    token_id_N = settings.pop("token_id_N", torch.zeros(len(student), dtype=torch.long))
    plain = {"tile_bytes": TILE, "candidates": 3}
    return row_statistics(needs, student, teacher, token_id_N, HeadSettings(**plain | settings))


def token_table(lengths: list[int], columns: dict[str, Tensor], rollout_ids: list[int] | None = None) -> TokenTable:
    """A table of rollouts of those lengths; `rollout_ids` renames them (others of the step are then absent)."""
    rollout_ids = list(range(len(lengths))) if rollout_ids is None else rollout_ids
    step = max(rollout_ids, default=-1) + 1
    length_B = torch.zeros(step, dtype=torch.long)
    length_B[rollout_ids] = torch.tensor(lengths, dtype=torch.long)
    return TokenTable(
        rollout_C=torch.repeat_interleave(torch.tensor(rollout_ids, dtype=torch.long), torch.tensor(lengths)),
        position_C=torch.cat([torch.arange(n) for n in lengths]),
        token_id_C=torch.zeros(sum(lengths), dtype=torch.long),
        sampler_logprob_C=torch.zeros(sum(lengths)),
        statistics=columns,
        length_B=length_B,
        reward_B=torch.zeros(step),
        advantage_B=torch.linspace(-1, 1, step, dtype=torch.float64) if step else torch.zeros(0, dtype=torch.float64),
        group_B=torch.zeros(step, dtype=torch.long),
    )


def random_table(lengths: list[int], seed: int = 0) -> TokenTable:
    """A table with every statistic, float64, positive and all different."""
    generator = torch.Generator().manual_seed(seed)
    columns = {name: torch.rand(sum(lengths), generator=generator, dtype=torch.float64) for name in MEASURED}
    return token_table(lengths, columns)


def draw(rollout: int) -> torch.Generator:
    """The generator of a rollout's draws."""
    return generator_for("test", rollout)
