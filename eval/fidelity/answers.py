"""Agreement of final answers."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean

from eval.scores import RIGHT, Graded
from eval.statistics import agreement, clustered

Problems = list[list[Graded]]
Pair = tuple[str, str]


@dataclass(frozen=True)
class AnswerFidelity:
    """Shares of pairs (the student's and the teacher's answer of one number to one problem) that are the same answer.

    All right answers are one answer; wrong ones are the same where their plain text is; no answer agrees with nothing.
    stderr: of `observed`, clustered by problem. expected: by chance, answers drawn from each model's own whatever the
    problem; kappa: Cohen's, (observed − expected) / (1 − expected). where_right, where_wrong: observed among the pairs
    whose teacher is right or wrong, None where there are none. self_agreement: the teacher's with itself, each answer
    and its next one to the problem; None for greedy or single answers. A student that samples as the teacher does
    reaches it; one that always gives the teacher's likeliest answer may pass it. Models must draw independently.
    """

    observed: float
    stderr: float
    expected: float
    kappa: float | None
    where_right: float | None
    where_wrong: float | None
    self_agreement: float | None
    pairs: int


def answer_fidelity(student: Problems, teacher: Problems, *, greedy: bool) -> AnswerFidelity:
    """Both models' graded answers to the same problems. greedy: the teacher says always the same."""
    by_problem = [_pairs(ours, theirs) for ours, theirs in zip(student, teacher, strict=True)]
    pairs = [pair for problem in by_problem for pair in problem]
    whole = agreement(*zip(*pairs, strict=True))
    alone = [_pairs(answers, answers[1:]) for answers in teacher]
    itself = None if greedy else _observed([pair for problem in alone for pair in problem])
    return AnswerFidelity(
        observed=whole.observed,
        stderr=clustered([[float(a == b) for a, b in problem] for problem in by_problem])["stderr"],
        expected=whole.expected,
        kappa=whole.kappa,
        where_right=_observed([pair for pair in pairs if pair[1] == RIGHT]),
        where_wrong=_observed([pair for pair in pairs if pair[1] != RIGHT]),
        self_agreement=itself,
        pairs=len(pairs),
    )


def _pairs(ours: list[Graded], theirs: list[Graded]) -> list[Pair]:
    """What both vote for, number by number; the label of no answer is each one's own."""
    return [
        (a.vote or "no answer of ours", b.vote or "no answer of theirs") for a, b in zip(ours, theirs, strict=False)
    ]


def _observed(pairs: list[Pair]) -> float | None:
    return fmean(a == b for a, b in pairs) if pairs else None
