"""Means and standard errors over problems, against numbers known by hand, scipy, closed forms and simulation."""

import numpy as np
import pytest
import scipy.stats

from eval.statistics import clustered, mean_and_stderr, ratio


def test_known_numbers():
    assert mean_and_stderr([1.0, 0.0, 1.0, 0.0]) == {"score": 0.5, "stderr": pytest.approx(0.2886751346), "n": 4}
    assert mean_and_stderr([2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0])["stderr"] == pytest.approx(0.7559289460)


SCORES = [float(i % 3 == 0) for i in range(101)]


def test_equals_scipy():
    assert mean_and_stderr(SCORES)["stderr"] == pytest.approx(scipy.stats.sem(SCORES))


@pytest.mark.parametrize("scores", [[1.0], [0.0], [1.0] * 5])
def test_no_spread_is_no_error(scores):
    assert mean_and_stderr(scores) == {"score": scores[0], "stderr": 0.0, "n": len(scores)}


def test_one_sample_a_problem_is_the_plain_mean():
    assert clustered([[score] for score in SCORES]) == mean_and_stderr(SCORES) | {"samples": 101, "within": None}


def test_clusters_by_hand():
    """Problem means .5, 1, .25 of 2, 1 and 4 samples: mean 7/12, squared deviations 1/144, 25/144, 16/144.

    Variances within are .5 and .25, and their mean .375 where there is one sample: (.5/2 + .375/1 + .25/4) / 9.
    """
    found = clustered([[1.0, 0.0], [1.0], [0.0, 0.0, 1.0, 0.0]])
    assert (found["score"], found["n"], found["samples"]) == (pytest.approx(7 / 12), 3, 7)
    assert found["stderr"] == pytest.approx((42 / 144 / (3 * 2)) ** 0.5)
    assert found["within"] == pytest.approx((0.6875 / 9) ** 0.5)


def test_clusters_are_the_papers_formula():
    """arXiv 2411.00640: the error of N independent scores, and all products within a cluster, times √(n / (n − 1))."""
    scores_nm = np.random.default_rng(0).integers(0, 2, (20, 5)).astype(float)
    off_nm = scores_nm - scores_nm.mean()
    paper = sum(a * b for row in off_nm for a in row for b in row) ** 0.5 / scores_nm.size
    assert clustered(scores_nm.tolist())["stderr"] == pytest.approx(paper * (20 / 19) ** 0.5)


@pytest.mark.parametrize("score", [0.0, 1.0])
def test_all_right_and_all_wrong(score):
    assert clustered([[score] * 4] * 3) == {"score": score, "stderr": 0.0, "n": 3, "samples": 12, "within": 0.0}


def test_one_problem_has_no_spread_between_problems():
    found = clustered([[1.0, 0.0]])
    assert found == {"score": 0.5, "stderr": 0.0, "n": 1, "samples": 2, "within": 0.5}


@pytest.mark.parametrize("scores", [[], [[1.0], []]])
def test_a_problem_without_samples_is_refused(scores):
    with pytest.raises(ValueError, match="at least one"):
        clustered(scores)


def test_both_errors_are_those_of_simulated_evaluations():
    """stderr: draws of problems and samples; within: of samples alone, on the same problems; unequal samples."""
    rng = np.random.default_rng(0)
    samples_n = np.tile([2, 3, 16], 20)
    fixed_n = rng.beta(0.5, 0.5, 60)
    found = {}
    for part, draw in {"stderr": lambda: rng.beta(0.5, 0.5, 60), "within": lambda: fixed_n}.items():
        draws = [clustered(scores_of(rng, draw(), samples_n)) for _ in range(2000)]
        claimed = np.mean([one[part] ** 2 for one in draws]) ** 0.5
        found[part] = np.std([one["score"] for one in draws]) / claimed
    assert found == {"stderr": pytest.approx(1, abs=0.04), "within": pytest.approx(1, abs=0.04)}


def scores_of(rng: np.random.Generator, chance_n: np.ndarray, samples_n: np.ndarray) -> list[np.ndarray]:
    """Samples of problems that are solved with these chances."""
    return [(rng.random(m) < chance).astype(float) for chance, m in zip(chance_n, samples_n, strict=True)]


def test_a_mean_per_token_by_hand_and_for_equal_lengths_the_plain_mean():
    """Sums 1, 4, 4 over 1, 2, 3 tokens: r = 1.5, residuals -.5, 1, -.5, stderr² = 3/2 · 1.5 / 36."""
    found = ratio([1.0, 4.0, 4.0], [1, 2, 3])
    assert found == {"score": 1.5, "stderr": pytest.approx((1.5 * 1.5 / 36) ** 0.5), "n": 3}
    assert ratio([2.0, 4.0, 9.0], [2, 2, 2]) == pytest.approx(mean_and_stderr([1.0, 2.0, 4.5]))
    assert ratio([3.0], [2]) == {"score": 1.5, "stderr": 0.0, "n": 1}


def test_the_error_per_token_is_that_of_repeated_draws():
    rng = np.random.default_rng(1)
    draws = []
    for _ in range(1500):
        lengths = rng.integers(5, 60, 80)
        levels = rng.gamma(2.0, 0.1, 80) * (1 + lengths / 60)
        draws.append(ratio((levels * lengths).tolist(), lengths.tolist()))
    spread = np.std([d["score"] for d in draws])
    assert np.mean([d["stderr"] for d in draws]) == pytest.approx(spread, rel=0.05)
