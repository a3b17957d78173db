"""The recipe's `teacher:` section."""

from __future__ import annotations

from typing import ClassVar, Literal

from opd.head.statistics import STATISTICS
from opd.record import Record


class LocalTeacherSettings(Record):
    """A frozen model of the same tokenizer, loaded beside the student; gives whole distributions."""

    gives: ClassVar[frozenset[str]] = frozenset({*STATISTICS, "distributions"})

    type: Literal["local"] = "local"
    model: str
    """Hugging Face id or local folder."""
    revision: str | None = None
    """Commit, tag or branch on the hub."""
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    """Attention kernel."""
