"""Rollouts → micro-batches of a token budget, balanced over data ranks, and their pieces: arithmetic on lengths.

Every rank computes the same plan from the same lengths, gets the same number of micro-batches, and takes its own.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch

from opd.batch import Batch, Rollout

Layout = Literal["rows", "packed"]
"""rows: right-padded rows of like length, for dense attention kernels. packed: one row, for variable-length ones."""


def pack(lengths: list[int], *, token_budget: int, ranks: int, layout: Layout) -> list[list[list[int]]]:
    """For each rank its micro-batches, each a list of rollout indices; as many for every rank, some perhaps empty.

    lengths: tokens of each rollout, prompt included. A micro-batch costs rows × longest row (`rows`) or the sum
    of its lengths (`packed`), and never more than `token_budget`. Raises ValueError for a longer rollout.

    >>> pack([4, 3, 2], token_budget=6, ranks=2, layout="rows")
    [[[0]], [[1, 2]]]
    """
    if lengths and max(lengths) > token_budget:
        raise ValueError(f"a rollout of {max(lengths)} tokens does not fit token_budget {token_budget}; raise it")
    shares = [_micro_batches(share, lengths, token_budget, layout) for share in _balanced(lengths, ranks)]
    most = max(1, *(len(share) for share in shares))
    return [share + [[]] * (most - len(share)) for share in shares]


def _balanced(lengths: list[int], ranks: int) -> list[list[int]]:
    """Rollouts for each rank: the longest first, each to the rank with the fewest tokens so far."""
    shares: list[list[int]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        rank = min(range(ranks), key=lambda r: (loads[r], r))
        shares[rank].append(index)
        loads[rank] += lengths[index]
    return shares


def _micro_batches(share: list[int], lengths: list[int], token_budget: int, layout: Layout) -> list[list[int]]:
    """A rank's rollouts, longest first, cut wherever the next would pass the budget."""
    batches: list[list[int]] = []
    for index in share:
        if batches and _cost([*batches[-1], index], lengths, layout) <= token_budget:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def _cost(batch: list[int], lengths: list[int], layout: Layout) -> int:
    tokens = [lengths[i] for i in batch]
    return len(tokens) * max(tokens) if layout == "rows" else sum(tokens)


def lay_out(rollouts: list[Rollout], indices: list[int], *, layout: Layout) -> Batch:
    """The micro-batch of those rollouts of the step (see `Batch` for a drawn example)."""
    if not indices:
        return _empty()
    ids = [rollouts[i].token_ids for i in indices]
    width = sum(map(len, ids)) if layout == "packed" else max(map(len, ids))
    starts = _starts(ids, width, layout)
    tokens, places = torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long)
    if layout == "packed":
        tokens = torch.tensor([[t for row in ids for t in row]])
        places = torch.cat([torch.arange(len(row)) for row in ids])[None]
    else:
        tokens = torch.tensor([row + [0] * (width - len(row)) for row in ids])
        places = torch.arange(width).expand(len(ids), width).contiguous()
    first_row = torch.tensor([0, *(r.length for r in rollouts)]).cumsum(0)
    return Batch(
        rollouts=indices,
        input_ids_SW=tokens,
        position_SW=places,
        source_C=_long(
            [start + p - 1 for i, start in zip(indices, starts, strict=True) for p in rollouts[i].positions]
        ),
        token_id_C=_long([t for i in indices for t in rollouts[i].completion]),
        rollout_C=_long([i for i in indices for _ in range(rollouts[i].length)]),
        row_C=torch.cat([torch.arange(rollouts[i].length) + first_row[i] for i in indices]),
    )


def piece_of(batch: Batch, index: int, pieces: int) -> Batch:
    """Piece `index` of `pieces` of a micro-batch: so much of each row, and the trained tokens that it predicts.

        input_ids_SW    [[1, 15, 9, 4, 6], [1, 7, 2, 0, 0]]     widened to 6; its piece 1 of 2: [[4, 6, 0], [0, 0, 0]]
        source_C        [2, 3, 6]                               there [0], of the second token

    Pieces are equally wide. What a row is widened by goes on with its positions, so that it ends no packed rollout.
    """
    if pieces == 1:
        return batch
    width = batch.input_ids_SW.shape[1]
    more = torch.arange(1, 1 + -width % pieces, device=batch.position_SW.device)
    ids_SW = torch.nn.functional.pad(batch.input_ids_SW, (0, len(more)))
    position_SW = torch.cat([batch.position_SW, batch.position_SW[:, -1:] + more], 1)
    size = ids_SW.shape[1] // pieces
    row_C, column_C = batch.source_C // width, batch.source_C % width - index * size
    own_c = ((column_C >= 0) & (column_C < size)).nonzero().squeeze(-1)
    place = slice(index * size, (index + 1) * size)
    return replace(
        batch.rows(own_c),
        input_ids_SW=ids_SW[:, place].contiguous(),
        position_SW=position_SW[:, place].contiguous(),
        source_C=(row_C * size + column_C)[own_c],
        pieces=pieces,
    )


def _starts(ids: list[list[int]], width: int, layout: Layout) -> list[int]:
    """Where each rollout's first token lies in the flattened rows."""
    if layout == "rows":
        return [row * width for row in range(len(ids))]
    return torch.tensor([0, *map(len, ids)]).cumsum(0)[:-1].tolist()


def _long(values: list[int]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.long)


def _empty() -> Batch:
    none, one = _long([]), torch.zeros(1, 1, dtype=torch.long)
    return Batch([], one, one.clone(), source_C=none, token_id_C=none, rollout_C=none, row_C=none)
