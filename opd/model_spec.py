"""How a recipe names a model: the base of `student:` and `teacher:`."""

from __future__ import annotations

from typing import Literal

from opd.record import Record

Precision = Literal["bf16", "fp32"]
"""Of weights and arithmetic."""


class ModelSettings(Record):
    """A model, and how it is loaded."""

    model: str
    """Hugging Face id or local folder of a causal language model."""
    revision: str | None = None
    """Commit, tag or branch on the hub; pin it for results that you publish."""
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = "auto"
    """Kernel; auto: flash_attention_2 where it can be, else sdpa or eager. Flash packs rollouts in one row."""
