"""Means, standard errors and paired tests against numbers known by hand and from scipy."""

import numpy as np
import pytest
import scipy.stats

from eval.statistics import detectable, holm, mean_and_stderr, paired


def test_known_numbers():
    assert mean_and_stderr([1.0, 0.0, 1.0, 0.0]) == {"score": 0.5, "stderr": pytest.approx(0.2886751346), "n": 4}
    assert mean_and_stderr([2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0])["stderr"] == pytest.approx(0.7559289460)


def test_equals_scipy():
    scores = [float(i % 3 == 0) for i in range(101)]
    assert mean_and_stderr(scores)["stderr"] == pytest.approx(scipy.stats.sem(scores))


@pytest.mark.parametrize("scores", [[1.0], [0.0], [1.0] * 5])
def test_no_spread_is_no_error(scores):
    assert mean_and_stderr(scores) == {"score": scores[0], "stderr": 0.0, "n": len(scores)}


OURS, THEIRS = [0.90, 0.92, 0.95, 0.91, 0.89], [0.85, 0.90, 0.91, 0.90, 0.86]


def test_paired_differences_by_hand():
    """d = .05 .02 .04 .01 .03: mean .03, sd .015811, se .0070711, t = 4.2426 with 4 degrees of freedom, p = .013236."""
    found = paired(OURS, THEIRS)
    assert found.difference == pytest.approx(0.03)
    assert found.p == pytest.approx(0.0132357, abs=1e-6)
    half = 2.7764451 * 0.0158113883 / 5**0.5
    assert (found.low, found.high) == (pytest.approx(0.03 - half), pytest.approx(0.03 + half))
    assert paired(THEIRS, OURS).difference == pytest.approx(-0.03)


def test_differences_without_spread():
    assert paired([0.5, 0.6], [0.5, 0.6]).p == 1.0
    assert paired([0.5, 0.75], [0.25, 0.5]).p == 0.0


def test_the_detectable_difference_is_found_as_often_as_it_says():
    rng = np.random.default_rng(0)
    shift = detectable(2.0, 5)
    p = scipy.stats.ttest_1samp(rng.normal(shift, 2.0, (20_000, 5)), 0.0, axis=1).pvalue
    assert np.mean(p < 0.05) == pytest.approx(0.8, abs=0.01)
    assert detectable(2.0, 2000) == pytest.approx(2.0 * (1.959964 + 0.841621) / 2000**0.5, rel=2e-3)
    assert detectable(4.0, 5) == pytest.approx(2 * shift)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []
