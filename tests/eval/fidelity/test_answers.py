"""Agreement of answers and of rationales, by hand."""

import pytest

from eval.fidelity.answers import answer_fidelity
from eval.fidelity.rationales import rationale_bleu, rationale_self
from eval.samples import Sample
from eval.scores import Graded


def said(final: str, right: bool = False) -> Graded:
    return Graded(right, right, final, "boxed" if final else "none", 5, "stop")


RIGHT, FIVE, SIX, NOTHING = said("7", True), said("5"), said("6"), said("")


def test_agreement_by_hand():
    """Right and right, the same wrong, another wrong, right beside wrong, and two that say nothing."""
    student = [[RIGHT], [FIVE], [SIX], [RIGHT], [NOTHING]]
    teacher = [[RIGHT], [FIVE], [FIVE], [SIX], [NOTHING]]
    found = answer_fidelity(student, teacher, greedy=True)
    assert (found.observed, found.where_right, found.where_wrong, found.pairs) == (0.4, 1.0, 0.25, 5)
    expected = 0.4 * 0.2 + 0.2 * 0.4 + 0.2 * 0.2  # right, five, six
    assert found.expected == pytest.approx(expected)
    assert found.kappa == pytest.approx((0.4 - expected) / (1 - expected))
    assert found.stderr == pytest.approx((0.24 / 4) ** 0.5)
    assert found.self_agreement is None, "greedy answers always agree with themselves"


def test_the_ceiling_is_the_teacher_with_itself():
    teacher = [[RIGHT, RIGHT, FIVE], [FIVE, FIVE, FIVE]]
    found = answer_fidelity([[RIGHT] * 3, [FIVE] * 3], teacher, greedy=False)
    assert found.self_agreement == 0.75 and found.observed == pytest.approx(5 / 6)
    assert answer_fidelity([[RIGHT]], [[RIGHT]], greedy=False).self_agreement is None
    assert answer_fidelity([[RIGHT]], [[RIGHT]], greedy=False).where_wrong is None


def sample(problem: int, number: int, text: str) -> Sample:
    return Sample(problem, number, text, 9, "stop")


def test_rationales_that_are_the_same_have_a_bleu_of_100_and_others_less():
    words = ["We add 3 and 4 and get 7 apples in all.", "There are 6 times 5 or 30 minutes."]
    teacher = [sample(p, 0, text) for p, text in enumerate(words)]
    assert rationale_bleu(teacher, teacher) == pytest.approx(100)
    near = [sample(0, 0, "We add 3 and 4 and have 7 apples in all."), teacher[1]]
    far = [sample(0, 0, "Seven."), sample(1, 0, "Half an hour, I think it is.")]
    assert 100 > rationale_bleu(near, teacher) > 50 > 5 > rationale_bleu(far, teacher)
    assert rationale_self(teacher) is None
    assert rationale_self([*teacher, sample(0, 1, words[0]), sample(1, 1, words[1])]) == pytest.approx(100)
