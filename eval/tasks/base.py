"""What a task is."""

from collections.abc import Callable
from dataclasses import dataclass

from opd.rollout.engine import Sampling

Problem = dict[str, str]
"""question and answer."""

GREEDY = 0.0
"""The temperature of greedy decoding."""


@dataclass(frozen=True)
class Shot:
    """A worked example for models without a chat template."""

    question: str
    worked: str


@dataclass(frozen=True)
class Task:
    """Held-out problems, the instruction after each question, and how answers are sampled if nothing else is said.

    load: n → the first n problems, or all where there are fewer; None → all (of an endless task, 400). Raises
    opd.errors.DataError where the data can't be had. shots: worked examples for the few-shot form; without them a task
    has chat prompts only.
    """

    name: str
    version: int
    load: Callable[[int | None], list[Problem]]
    instruction: str
    sampling: Sampling
    shots: tuple[Shot, ...] = ()
