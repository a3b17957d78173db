"""95 % intervals: what they cover in simulated evaluations, and scipy's and textbooks' numbers."""

import math
import warnings

import numpy as np
import pytest
import scipy.stats

from eval.statistics import bootstrap, clustered, student, wilson
from tests.eval.statistics.test_means import SCORES, scores_of

UNEQUAL = -1
EVALUATIONS = [
    (0.5, 0.5, 50, 16), (0.5, 0.5, 100, UNEQUAL), (2, 1, 50, 1), (2, 1, 100, 4), (8, 2, 50, 4), (8, 2, 200, 1),
    (1, 9, 100, UNEQUAL), (19, 1, 50, 16), (9, 1, 500, 1), (5, 5, 500, 1),
]  # fmt: skip
"""Beta-binomial problems: a, b, how many, samples of each (1 to 16 where they are unequal)."""


@pytest.mark.parametrize("evaluation", EVALUATIONS, ids=str)
def test_nominal_95_percent_intervals_cover_93_to_97_over_a_thousand_draws(evaluation):
    a, b, n, samples = evaluation
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(1000):
        samples_n = rng.integers(1, 17, n) if samples == UNEQUAL else np.full(n, samples)
        found = clustered(scores_of(rng, rng.beta(a, b, n), samples_n))
        low, high = wilson(found["score"], found["stderr"], n)
        held += low <= a / (a + b) <= high
    assert 0.93 <= held / 1000 <= 0.97


def test_student_covers_where_nothing_is_near_an_end():
    rng = np.random.default_rng(0)
    draws = [clustered(scores_of(rng, rng.beta(2, 2, 50), np.full(50, 4))) for _ in range(1000)]
    intervals = [student(found["score"], found["stderr"], 50) for found in draws]
    assert 0.93 <= np.mean([low <= 0.5 <= high for low, high in intervals]) <= 0.97


def test_student_is_scipys():
    sem = scipy.stats.sem(SCORES)
    ends = scipy.stats.t.interval(0.95, 100, np.mean(SCORES), sem)
    assert student(float(np.mean(SCORES)), float(sem), 101) == pytest.approx(ends)
    assert student(0.5, 0.0, 1) == (-math.inf, math.inf)


def test_wilson_is_scipys_for_one_sample_of_many_problems():
    scores = [1.0] * 700 + [0.0] * 9_300
    found = clustered([[score] for score in scores])
    low, high = wilson(found["score"], found["stderr"], 10_000)
    theirs = scipy.stats.binomtest(700, 10_000).proportion_ci(method="wilson")
    assert (low, high) == (pytest.approx(theirs.low, abs=1e-5), pytest.approx(theirs.high, abs=1e-5))


def test_wilson_at_the_ends_by_hand():
    """All of 30 right: N = 29, t = 2.04523, so from 1 / (1 + t² / N) to 1. Further samples of each show no more."""
    assert wilson(1.0, 0.0, 30) == (pytest.approx(1 / (1 + 2.0452296**2 / 29)), 1.0)
    assert wilson(0.0, 0.0, 30) == (0.0, pytest.approx(1 - 1 / (1 + 2.0452296**2 / 29)))
    assert wilson(1.0, 0.0, 1) == (0.0, 1.0)


def test_clustered_samples_count_as_fewer():
    """Half right with an error of .1: 25 independent samples, whatever n is."""
    t = scipy.stats.t.ppf(0.975, 9)
    half = t * (0.25 / 25 + t**2 / 4 / 625) ** 0.5 / (1 + t**2 / 25)
    assert wilson(0.5, 0.1, 10) == (pytest.approx(0.5 - half), pytest.approx(0.5 + half))


def test_bootstrap_of_many_values_is_the_normal_interval():
    values = np.random.default_rng(0).normal(0.1, 1.0, 400)
    found = bootstrap(values)
    middle, error = values.mean(), values.std() / 20
    assert (found.low, found.high) == pytest.approx((middle - 1.96 * error, middle + 1.96 * error), abs=0.1 * error)
    assert found.p == pytest.approx(2 * scipy.stats.norm.sf(abs(middle) / error), rel=0.15)
    assert bootstrap(values) == found != bootstrap(values, seed=1)


def test_bootstraps_p_is_the_level_whose_interval_ends_at_zero():
    values = np.random.default_rng(1).normal(0.15, 1.0, 100)
    p = bootstrap(values).p
    assert 0.01 < p < 0.9
    assert bootstrap(values, alpha=1.1 * p).low > 0 > bootstrap(values, alpha=0.9 * p).low
    assert bootstrap(-values).p == pytest.approx(p, rel=0.1)


LEAST = 2 / 10_001


@pytest.mark.parametrize("values, p", [([0.0] * 5, 1.0), ([1.0] * 5, LEAST), ([0.1] * 7, LEAST), ([0.3], LEAST)])
def test_values_without_spread_give_no_width_no_nan_and_no_warning(values, p):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = bootstrap(values)
    assert (found.low, found.high, found.p) == pytest.approx((values[0], values[0], p))


@pytest.mark.parametrize("score", [0.0, 1.0])
def test_the_interval_holds_its_own_score_to_the_last_bit(score):
    for n in range(2, 1500):
        low, high = wilson(score, 0.0, n)
        assert 0.0 <= low <= score <= high <= 1.0
