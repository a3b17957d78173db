"""pass@k and maj@k against hand-made cases, every draw counted, and simulation."""

from itertools import combinations

import numpy as np
import pytest

from eval.statistics import majority, pass_at_k


@pytest.mark.parametrize("correct", range(7))
@pytest.mark.parametrize("k", range(1, 7))
def test_pass_at_k_is_the_share_of_all_draws(correct, k):
    draws = list(combinations([True] * correct + [False] * (6 - correct), k))
    assert pass_at_k(correct, 6, k) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_pass_at_k_of_many_samples_is_exact():
    """One right of n is drawn with probability k / n; numbers that no float holds."""
    assert pass_at_k(1, 100_000, 1_000) == 0.01
    assert pass_at_k(1, 10**15, 1) == 1e-15
    assert pass_at_k(0, 5_000, 2_500) == 0.0 and pass_at_k(5_000, 5_000, 1) == 1.0


@pytest.mark.parametrize("correct, samples, k", [(1, 4, 5), (1, 4, 0), (5, 4, 1), (-1, 4, 1), (0, 0, 1)])
def test_pass_at_k_refuses_what_cannot_be(correct, samples, k):
    with pytest.raises(ValueError):
        pass_at_k(correct, samples, k)


PROBLEMS = {
    "one class wins": (["a", "a", "b", "c", "a", None], "a"),
    "a tie of two": (["a", "a", "b", "b", "c"], "a"),
    "a tie of three": (["a", "b", "c", None], "b"),
    "the wrong one wins": (["a", "b", "b", "b", "c", "c", "a"], "a"),
    "mostly silent": ([None, None, None, "a", "b", None], "a"),
    "nobody answers": ([None, None, None], "a"),
    "nobody is right": (["a", "b"], "z"),
    "one sample": (["a"], "a"),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_majority_is_the_mean_of_the_votes_of_all_draws(name):
    answers, truth = PROBLEMS[name]
    correct = [float(answer == truth) for answer in answers]
    for k in range(1, len(answers) + 1):
        votes = [vote(drawn, truth) for drawn in combinations(answers, k)]
        assert majority(answers, correct, k) == pytest.approx(sum(votes) / len(votes)), k
    assert majority(answers, correct) == pytest.approx(vote(answers, truth))


def vote(drawn, truth) -> float:
    """The credit of one vote, ties shared."""
    counts = {answer: drawn.count(answer) for answer in drawn if answer is not None}
    winners = [answer for answer, count in counts.items() if count == max(counts.values())]
    return winners.count(truth) / len(winners) if winners else 0.0


def test_several_right_classes_add_up_and_a_mixed_one_counts_by_its_mean():
    assert majority(["½", "½", "0.5", "7"], [1.0, 1.0, 1.0, 0.0], 1) == 0.75
    assert majority(["½", "0.5", "7"], [1.0, 1.0, 0.0]) == pytest.approx(2 / 3)
    assert majority(["a", "a", "b"], [1.0, 0.0, 0.0]) == 0.5


def test_majority_of_many_samples_against_simulation():
    rng = np.random.default_rng(0)
    answers_n = np.repeat(np.arange(12), [9, 9, 8, 7, 6, 5, 5, 4, 4, 3, 2, 2])
    draws = [vote(rng.permutation(answers_n)[:16].tolist(), 2) for _ in range(4_000)]
    exact = majority(answers_n.tolist(), (answers_n == 2).astype(float).tolist(), 16)
    assert exact == pytest.approx(np.mean(draws), abs=4 * np.std(draws) / 4_000**0.5)


@pytest.mark.parametrize("answers, correct, k", [(["a"], [1.0], 2), (["a"], [1.0], 0), ([], [], None), (["a"], [], 1)])
def test_majority_refuses_what_cannot_be(answers, correct, k):
    with pytest.raises(ValueError):
        majority(answers, correct, k)
