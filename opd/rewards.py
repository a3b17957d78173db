"""The one grader: rewards in training and scores in eval/ both come from here."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from opd.grading.equal import equal
from opd.grading.extract import Final, final_answer
from opd.grading.isolated import WORKERS

GRADER = 2
"""Version of the grader, for the results of an evaluation: raise it whenever a verdict could change."""


@dataclass(frozen=True)
class Verdict:
    """Whether the final answer is right, strictly (in a box) and flexibly (by any rule), and how it was found.

    undecided: algebra could not tell within the processor time of one question, which counts as wrong.
    """

    strict: bool
    flexible: bool
    final: Final
    undecided: bool = False


def judge(completion: str, answer: str, *, thinking: bool = False) -> Verdict:
    """The completion's final answer against the known one; see `opd.grading.extract` for rules and `thinking`.

    >>> judge("The answer is 18.", "18")
    Verdict(strict=False, flexible=True, final=Final(text='18', rule='phrase'), undecided=False)
    """
    final = final_answer(completion, thinking=thinking)
    right = equal(final.text, answer) if final.text else False
    return Verdict(bool(right) and final.rule == "boxed", bool(right), final, undecided=right is None)


def judge_all(pairs: Iterable[tuple[str, str]], *, thinking: bool = False) -> list[Verdict]:
    """Verdicts of (completion, answer), in order; algebra runs in several processes at once."""
    with ThreadPoolExecutor(WORKERS) as threads:
        return list(threads.map(lambda pair: judge(*pair, thinking=thinking), pairs))


def grade(completion: str, answer: str, *, thinking: bool = False) -> float:
    """1.0 if the completion's final answer equals `answer` (flexibly), else 0.0: the training reward.

    >>> grade("so it is \\\\boxed{1{,}000}", "1000"), grade("5 apples and 7", "5")
    (1.0, 0.0)
    """
    return float(judge(completion, answer, thinking=thinking).flexible)
