"""The seam between trainer and teachers."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from opd.batch import Batch, Rollout, TeacherScores
from opd.rollout.engine import Weights


@runtime_checkable
class Teacher(Protocol):
    """Scores the student's tokens. It maps positions itself: a privileged prompt would change the token ids."""

    def start(self, rollouts: list[Rollout]) -> None:
        """The whole step's rollouts, for a teacher that works ahead."""

    def score(self, batch: Batch) -> TeacherScores:
        """What the teacher says at the batch's trained positions."""

    def load(self, weights: Weights, version: int) -> None:
        """New weights, for a teacher that follows the student; nothing for a frozen one."""
