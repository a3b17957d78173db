"""What a task is."""

from collections.abc import Callable
from dataclasses import dataclass

from opd.rollout.engine import Sampling

Problem = dict[str, str]
"""question and answer."""

GREEDY = 0.0
"""The temperature of greedy decoding."""
INSTRUCTION = "\nPlease reason step by step, and put your final answer within \\boxed{}."
MEAN_AT_16 = Sampling(samples=16, max_new_tokens=8192, temperature=1.0)
"""The protocol of TIP (arXiv 2604.14084): mean@16 at T = 1, answers of up to 8,192 tokens."""


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
