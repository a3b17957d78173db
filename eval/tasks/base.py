"""What a task is."""

from collections.abc import Callable
from dataclasses import dataclass

Problem = dict[str, str]
"""question and answer."""


@dataclass(frozen=True)
class Task:
    """Held-out problems, the instruction that follows each question, and how long an answer may be.

    load: n → the first n problems. Raises opd.errors.DataError where the data can't be had.
    """

    name: str
    version: int
    load: Callable[[int], list[Problem]]
    instruction: str
    max_new_tokens: int
