"""Row statistics: entropies, divergences and log-probs of each trained token, from one pass over tiles of rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from opd.head.cost import tile_rows
from opd.head.tile import HeadSettings, Tile, at, log_softmax, weigh
from opd.head.weights import HiddenStates, working_dtype


@dataclass(frozen=True)
class Statistic:
    """How a column of the token table comes from a tile: `of(tile)` is [n], or [n, K] for candidates."""

    of: Callable[[Tile], Tensor]
    needs_teacher: bool
    is_candidate: bool = False


def entropy(log_p_nV: Float[Tensor, "n V"]) -> Float[Tensor, " n"]:
    """H = −Σ p log p, nats."""
    return -weigh(log_p_nV.exp(), log_p_nV).sum(-1)


def kl(log_p_nV: Float[Tensor, "n V"], log_q_nV: Float[Tensor, "n V"]) -> Float[Tensor, " n"]:
    """KL(p‖q) = Σ p (log p − log q), nats; rounding below zero is cut off."""
    return weigh(log_p_nV.exp(), log_p_nV - log_q_nV).sum(-1).clamp_min(0)


def _trainer_logprob(tile: Tile) -> Tensor:
    return at(log_softmax(tile.logits_nV, tile.settings.sampler_temperature), tile.raw_token_id_n)


def _stop_mass(log_p_nV: Tensor, tile: Tile) -> Tensor:
    return log_p_nV[:, tile.stop].exp().sum(-1)


STATISTICS: dict[str, Statistic] = {
    "student_entropy": Statistic(lambda t: entropy(t.student()), needs_teacher=False),
    "teacher_entropy": Statistic(lambda t: entropy(t.teacher()), needs_teacher=True),
    "reverse_kl": Statistic(lambda t: kl(t.student(), t.teacher()), needs_teacher=True),
    "forward_kl": Statistic(lambda t: kl(t.teacher(), t.student()), needs_teacher=True),
    "student_logprob": Statistic(lambda t: at(t.student(), t.token_id_n), needs_teacher=False),
    "teacher_logprob": Statistic(lambda t: at(t.teacher(), t.token_id_n), needs_teacher=True),
    "trainer_logprob": Statistic(_trainer_logprob, needs_teacher=False),
    "student_stop_mass": Statistic(lambda t: _stop_mass(t.student(), t), needs_teacher=False),
    "teacher_stop_mass": Statistic(lambda t: _stop_mass(t.teacher(), t), needs_teacher=True),
    "candidate_id": Statistic(lambda t: t.candidates, needs_teacher=False, is_candidate=True),
    "candidate_student_logprob": Statistic(
        lambda t: t.student().gather(-1, t.candidates), needs_teacher=False, is_candidate=True
    ),
    "candidate_teacher_logprob": Statistic(
        lambda t: t.teacher().gather(-1, t.candidates), needs_teacher=True, is_candidate=True
    ),
    "teacher_top_id": Statistic(lambda t: t.teacher_top, needs_teacher=True, is_candidate=True),
    "teacher_top_student_logprob": Statistic(
        lambda t: at(t.student(), t.teacher_top), needs_teacher=True, is_candidate=True
    ),
    "teacher_top_logprob": Statistic(lambda t: t.teacher().amax(-1), needs_teacher=True, is_candidate=True),
}
"""Every statistic by name, in nats (ids and masses excepted), at the loss's temperature, of merged outcomes.

`trainer_logprob` alone is raw and at the sampler's temperature: what the sampler's own log-prob is compared with.
`*_stop_mass`: probability of the end tokens together. `candidate_*`: the student's top K, highest first, [n, K].
"""

MEASURED: frozenset[str] = frozenset(name for name, statistic in STATISTICS.items() if not statistic.is_candidate)
"""Statistics that a step can report as numbers."""


@torch.no_grad()
def row_statistics(
    needs: Iterable[str],
    student: HiddenStates,
    teacher: HiddenStates | None,
    token_id_N: Int[Tensor, " N"],
    settings: HeadSettings,
) -> dict[str, Tensor]:
    """The statistics named in `needs` for every row: [N] each, [N, K] for candidates.

    The teacher's head is touched only where a statistic needs it. Raises KeyError for a name that does not exist, and
    ValueError where a teacher is needed and None.
    """
    names = sorted(set(needs))
    if unknown := set(names) - set(STATISTICS):
        raise KeyError(f"no such statistic: {sorted(unknown)}; there are {tuple(STATISTICS)}")
    rows, device, dtype = len(student), student.hidden_NH.device, working_dtype(student.hidden_NH.dtype)
    parts: dict[str, list[Tensor]] = {name: [] for name in names}
    n = tile_rows(student.head.vocabulary, itemsize=dtype.itemsize, tile_bytes=settings.tile_bytes)
    for rows_n in torch.arange(rows, device=device).split(n) if names else []:
        tile = Tile(rows_n, student, teacher, token_id_N, settings)
        for name in names:
            parts[name].append(STATISTICS[name].of(tile).to(dtype))
    return {name: torch.cat(columns) for name, columns in parts.items()}
