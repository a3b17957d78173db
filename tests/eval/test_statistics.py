"""Means and standard errors against numbers known by hand and from scipy."""

import pytest
import scipy.stats

from eval.statistics import mean_and_stderr


def test_known_numbers():
    assert mean_and_stderr([1.0, 0.0, 1.0, 0.0]) == {"score": 0.5, "stderr": pytest.approx(0.2886751346), "n": 4}
    assert mean_and_stderr([2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0])["stderr"] == pytest.approx(0.7559289460)


def test_equals_scipy():
    scores = [float(i % 3 == 0) for i in range(101)]
    assert mean_and_stderr(scores)["stderr"] == pytest.approx(scipy.stats.sem(scores))


@pytest.mark.parametrize("scores", [[1.0], [0.0], [1.0] * 5])
def test_no_spread_is_no_error(scores):
    assert mean_and_stderr(scores) == {"score": scores[0], "stderr": 0.0, "n": len(scores)}
