"""Figures that a recipe carries: the paper's, others', and ours; each says where it comes from."""

from __future__ import annotations

from pydantic import Field

from opd.record import Record

Scores = dict[str, float]
"""Task → score in percent."""


class ReportedFigures(Record):
    """Somebody else's figures for a recipe."""

    scores: Scores = Field(default_factory=dict)
    """The trained student's."""
    start_scores: Scores = Field(default_factory=dict)
    """The untrained student's."""
    teacher_scores: Scores = Field(default_factory=dict)
    """The teacher's."""
    protocol: str
    """How they were measured: samples, temperature; `not stated` is an answer."""
    source: str
    """Paper or report."""
    teacher: str | None = None
    """The teacher, where it is not the recipe's."""
    note: str | None = None
    """What a reader must know beside."""


class MeasuredFigures(Record):
    """Our own figures for a recipe, as it stands in the file."""

    scores: Scores
    """The trained student's."""
    stderr: Scores
    """Standard errors of `scores`."""
    start_scores: Scores
    """The untrained student's, by the same protocol."""
    teacher_scores: Scores
    """The teacher's, by the same protocol."""
    n: dict[str, int]
    """Problems of each task."""
    steps: int
    """Optimizer steps."""
    hardware: str
    """What it ran on."""
    commit: str
    """Of this repository."""
    command: str
    """That repeats it."""
    note: str | None = None
    """What a reader must know beside."""
