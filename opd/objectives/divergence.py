"""What the divergences between teacher and student share: over which outcomes they are taken."""

from typing import Literal

import torch
from pydantic import PositiveInt, model_validator

from opd.head.outcomes import Outcomes, TeacherTop
from opd.objectives.base import DenseObjective, Outcome


class Divergence(DenseObjective):
    """A divergence between p_S and p_T over the whole vocabulary, or over a list and its tail."""

    teacher_top: PositiveInt | None = None
    """Only the teacher's so many likeliest tokens, and all the rest as one outcome; null takes the whole vocabulary."""
    tail: Literal["bucket", "renormalise"] = "bucket"
    """What becomes of the rest. renormalise lets the student's tail grow unpunished: for comparison only."""

    @model_validator(mode="after")
    def _tail_needs_a_list(self) -> "Divergence":
        if self.teacher_top is None and self.tail != "bucket":
            raise ValueError("'tail' has no effect without 'teacher_top'; remove it, or give the list's length")
        return self

    @property
    def outcomes(self) -> Outcomes | None:
        return None if self.teacher_top is None else TeacherTop(self.teacher_top, self.tail)


def log(p_nO: Outcome) -> Outcome:
    """log p; the smallest normal number's where p is 0, so that 0 · log 0 is 0."""
    return p_nO.clamp_min(torch.finfo(p_nO.dtype).tiny).log()
