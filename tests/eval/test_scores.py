"""What graded answers are worth together, by hand."""

import pytest

from eval.asking import Asked, Asking
from eval.samples import Sample
from eval.scores import Graded, graded, score_of
from eval.tasks import TASKS
from opd.batch import Prompt


def answer(right: bool, final: str = "7", rule: str = "boxed", tokens: int = 10, finish: str = "stop") -> Graded:
    return Graded(right, right and rule == "boxed", final, rule, tokens, finish)


def test_two_problems_of_four_answers_by_hand():
    problems = [
        [answer(True), answer(True, rule="phrase"), answer(False, "8"), answer(False, "9", finish="length", tokens=30)],
        [answer(False, "1"), answer(False, "1"), answer(True), answer(False, "", "none")],
    ]
    score = score_of(problems)
    assert score["score"] == pytest.approx((0.5 + 0.25) / 2) and score["n"] == 2 and score["samples"] == 8
    assert score["stderr"] == pytest.approx(0.125)
    assert score["strict"] == pytest.approx((0.25 + 0.25) / 2)
    assert score["pass"] == pytest.approx({"1": 0.375, "2": (1 - 1 / 6 + 0.5) / 2, "4": 1.0})
    assert score["majority"] == {"4": 0.5}, "two right ones outvote 8 and 9; two of 1 outvote one right"
    assert (score["truncated"], score["unboxed"], score["tokens"]) == (1 / 8, 2 / 8, 12.5)
    assert score["rules"] == {"boxed": 6 / 8, "phrase": 1 / 8, "last": 0, "none": 1 / 8, "unfinished": 0}
    assert 0 <= score["low"] < score["score"] < score["high"] <= 1


def test_wrong_answers_that_are_written_differently_are_one_vote():
    votes = [answer(False, r"\dfrac{1}{2}"), answer(False, "0.5"), answer(False, r"x=\frac12"), *[answer(True)] * 2]
    assert len({vote.vote for vote in votes[:3]}) == 1 and votes[0].vote != votes[3].vote
    assert score_of([votes])["majority"] == {"5": 0.0}


def test_no_wrong_answer_votes_for_the_right_one():
    grades = [answer(True), answer(False, "right"), answer(False, "right"), answer(False, "obtuse")]
    assert score_of([grades])["majority"] == {"4": 0.0}


def test_samples_are_graded_against_their_own_problem_and_an_open_thought_has_no_answer():
    prompts = [Prompt(i, [1], {"question": "?", "answer": a}) for i, a in enumerate("23")]
    samples = [
        Sample(i, n, t, 4, "stop") for i, n, t in [(0, 0, "it is 2"), (0, 1, r"\boxed{3}"), (1, 0, "3"), (1, 1, "")]
    ]
    sampling = TASKS["arithmetic"].sampling
    rights = [
        [g.flexible for g in p] for p in graded(samples, Asked(TASKS["gsm8k"], Asking(), sampling, prompts, False))
    ]
    assert rights == [[True, False], [True, False]]
    thinking = graded(samples, Asked(TASKS["gsm8k"], Asking(), sampling, prompts, True))
    assert {g.rule for p in thinking for g in p} == {"unfinished"} and not any(g.flexible for p in thinking for g in p)
