"""The recipe's `teacher:` section."""

from __future__ import annotations

from typing import ClassVar, Literal

from opd.head.statistics import STATISTICS
from opd.model_spec import ModelSettings
from opd.record import Record


class TeacherSettings(Record):
    """What every kind of teacher says of itself: its type, and what it gives (statistics, whole distributions)."""

    gives: ClassVar[frozenset[str]] = frozenset()
    type: str


class LocalTeacherSettings(ModelSettings, TeacherSettings):
    """A frozen model of the same tokenizer, loaded beside the student; gives whole distributions."""

    gives: ClassVar[frozenset[str]] = frozenset({*STATISTICS, "distributions"})

    type: Literal["local"] = "local"
    head: Literal["auto", "whole", "by_vocabulary"] = "auto"
    """Its lm_head on each rank: whole, or a part by vocabulary; auto cuts it where that frees memory, and says why."""
    shard: Literal["none", "zero3"] = "none"
    """Its weights on each rank: all of them, or by ZeRO-3 a part of each, whatever stage the student is under."""
    offload: bool = False
    """Its weights are in main memory except while it scores (its head: while the step needs it); CUDA only."""
