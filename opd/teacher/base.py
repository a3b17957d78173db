"""The seam between trainer and teachers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from opd.batch import Batch, Rollout
from opd.head.weights import HiddenStates
from opd.vocab_ranks import RankShard


@dataclass(frozen=True)
class TeacherScores(HiddenStates):
    """What a teacher says about a batch: the last hidden state at each trained position [C, Ht], and its own head.

    Dense and exact: any divergence over the whole vocabulary follows from it. shard: which part of the vocabulary the
    head is, where every rank holds another one; None: it is whole.
    """

    shard: RankShard | None = None

    @property
    def vocabulary(self) -> int:
        """Tokens that the head knows, all its parts together."""
        return self.head.vocabulary if self.shard is None else self.shard.vocabulary


@runtime_checkable
class Teacher(Protocol):
    """Scores the student's tokens. It maps positions itself: a privileged prompt would change the token ids."""

    def start(self, rollouts: list[Rollout]) -> None:
        """The whole step's rollouts, for a teacher that works ahead."""

    def score(self, batch: Batch) -> TeacherScores:
        """What the teacher says at the batch's trained positions; every rank asks as often."""

    def rest(self) -> None:
        """No batch follows for now: its weights may leave the device, but for what scores that are out hold."""
