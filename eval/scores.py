"""Graded answers, and what a task's answers are worth together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from statistics import fmean
from typing import Any

from eval.asking import Asked
from eval.samples import Sample
from eval.statistics import bootstrap, clustered, majority, pass_at_k, problem_means, wilson
from opd.grading.equal import label
from opd.grading.extract import RULES
from opd.rewards import judge_all

RIGHT = "\0right"
"""The class of all right answers in a vote: no text's label."""


@dataclass(frozen=True)
class Graded:
    """One answer: right flexibly, right strictly (in a box), what was taken as final by which rule, length and end.

    undecided: algebra did not come to an end in time, and the answer counts as wrong.
    """

    flexible: bool
    strict: bool
    final: str
    rule: str
    tokens: int
    finish: str
    undecided: bool = False

    @property
    def vote(self) -> str | None:
        """What the answer votes for: all right ones are one class, wrong ones are told apart by their label."""
        return RIGHT if self.flexible else label(self.final) or None


def graded(samples: list[Sample], asked: Asked) -> list[list[Graded]]:
    """The samples graded by the one grader, a list for each problem."""
    answers = {prompt.index: prompt.extra["answer"] for prompt in asked.prompts}
    pairs = [(sample.text, answers[sample.problem]) for sample in samples]
    verdicts = judge_all(pairs, thinking=asked.in_thought)
    rows = [
        (s.problem, Graded(v.flexible, v.strict, v.final.text, v.final.rule, s.tokens, s.finish, v.undecided))
        for s, v in zip(samples, verdicts, strict=True)
    ]
    return [[grade for _, grade in group] for _, group in groupby(rows, key=lambda row: row[0])]


def score_of(problems: list[list[Graded]]) -> dict[str, Any]:
    """What a table shows of n problems, answered as often each.

    score, stderr, low, high: flexible avg@samples, its standard error clustered by problem, its 95 % interval (Wilson;
    `bootstrap` holds another, by resampled problems). within: the part of stderr that more answers would take away.
    strict, strict_stderr: only boxed answers count. pass, majority: pass@k for k = 1, 2, 4 … and maj@samples. tokens:
    mean length. truncated, failed, undecided, unboxed, and rules: shares of the answers that were cut off, ended in
    an engine error, were too much for the grader's algebra, have no box, and were found by each rule.
    """
    flexible, strict = ([[float(getattr(g, kind)) for g in p] for p in problems] for kind in ("flexible", "strict"))
    every = [grade for problem in problems for grade in problem]
    score, boxed, samples = clustered(flexible), clustered(strict), len(problems[0])
    low, high = wilson(score["score"], score["stderr"], score["n"])
    resampled = bootstrap(problem_means(flexible))
    rules = Counter(grade.rule for grade in every)
    ks = [2**power for power in range(samples.bit_length()) if 2**power <= samples]
    return score | {
        "samples_per_problem": samples,
        "low": low,
        "high": high,
        "bootstrap": [resampled.low, resampled.high],
        "strict": boxed["score"],
        "strict_stderr": boxed["stderr"],
        "pass": {str(k): fmean(pass_at_k(int(sum(s)), samples, k) for s in flexible) for k in ks},
        "majority": {str(samples): fmean(map(_voted, problems, flexible))},
        "tokens": fmean(grade.tokens for grade in every),
        "truncated": _share(grade.finish == "length" for grade in every),
        "failed": _share(grade.finish == "error" for grade in every),
        "undecided": _share(grade.undecided for grade in every),
        "unboxed": _share(grade.rule != "boxed" for grade in every),
        "rules": {rule: rules[rule] / len(every) for rule in RULES},
    }


def _voted(grades: list[Graded], right: list[float]) -> float:
    return majority([grade.vote for grade in grades], right)


def _share(flags: Iterable[bool]) -> float:
    return fmean(map(float, flags))
