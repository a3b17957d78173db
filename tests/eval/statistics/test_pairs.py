"""Paired tests against numbers known by hand, scipy and simulation."""

import numpy as np
import pytest
import scipy.stats

from eval.statistics import Comparison, bootstrap, clustered, compare, detectable, holm, mcnemar, paired
from tests.eval.statistics.test_means import scores_of

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
    assert paired([0.5, 0.75], [0.25, 0.5]).p == 0.5


def test_equal_differences_of_coarse_scores_are_no_proof():
    """Of 400 problems: one more in each of two seeds, whose differences rounding alone tells apart."""
    ours, theirs = [0.9825, 0.985], [0.98, 0.9825]
    assert 0 < np.std(np.subtract(ours, theirs)) < 1e-9, "or this is the case of no spread at all"
    found = paired(ours, theirs)
    assert (found.p, found.detectable) == (0.5, 0.0) and found.difference == pytest.approx(0.0025)
    assert paired([0.5] * 5, [0.25] * 5).p == 1 / 16


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


def greedy(right: str) -> list[list[float]]:
    """One sample a problem, from a string of 1 and 0."""
    return [[float(sign)] for sign in right]


def test_two_models_of_one_sample_a_problem_by_hand():
    """d = 1 1 1 0 0 0 0 -1: mean .25, squared deviations 3.5, stderr √(3.5 / 56) = .25, so t = 1; coins 3 of 4."""
    found = compare(greedy("11111000"), greedy("00011001"))
    assert (found.ours, found.theirs, found.difference, found.n) == (0.625, 0.375, 0.25, 8)
    assert (found.stderr, found.mcnemar) == (pytest.approx(0.25), pytest.approx(2 * 5 / 16))
    assert found.p == pytest.approx(2 * scipy.stats.t.sf(1, 7))
    assert found.detectable == pytest.approx(detectable(0.5**0.5, 8))


def test_two_models_of_several_samples_by_hand():
    """Means .5 1 .5 and 0 .5 .25: d = .5 .5 .25, mean 5/12, squared deviations 1/24, so stderr² = 1/144."""
    found = compare([[1.0, 0.0], [1.0], [0.0, 1.0]], [[0.0], [1.0, 0.0], [0.0, 1.0, 0.0, 0.0]])
    assert (found.ours, found.theirs, found.difference) == pytest.approx((2 / 3, 1 / 4, 5 / 12))
    assert (found.stderr, found.mcnemar) == (pytest.approx(1 / 12), None)
    differences = bootstrap([0.5, 0.5, 0.25])
    assert (found.bootstrap_low, found.bootstrap_high, found.bootstrap_p) == tuple(vars(differences).values())


def test_the_error_of_a_comparison_is_that_of_a_difference_of_means():
    """se² = se_ours² + se_theirs² − 2 · covariance / n of the problem means: what both find hard cancels."""
    rng = np.random.default_rng(0)
    hard_n = rng.beta(0.5, 0.5, 80)
    ours, theirs = (scores_of(rng, hard_n, np.full(80, m)) for m in (4, 7))
    means = [[float(np.mean(scores)) for scores in model] for model in (ours, theirs)]
    alone = [clustered(model)["stderr"] for model in (ours, theirs)]
    found = compare(ours, theirs)
    assert found.stderr**2 == pytest.approx(alone[0] ** 2 + alone[1] ** 2 - 2 * np.cov(*means)[0, 1] / 80)
    assert found.p == pytest.approx(scipy.stats.ttest_rel(*means).pvalue)
    assert found.stderr < min(alone)


def test_mcnemar_is_scipys_binomial_test():
    """Nine problems that one model alone solves, eight of them ours: p = 2 (1 + 9) / 2⁹."""
    assert mcnemar(greedy("11111111000"), greedy("00000000110")) == pytest.approx(scipy.stats.binomtest(2, 10).pvalue)
    assert mcnemar(greedy("111111110"), greedy("000000001")) == pytest.approx(20 / 512)
    assert mcnemar(greedy("1010"), greedy("1010")) == 1.0


def test_mcnemar_is_for_one_right_or_wrong_sample_a_problem():
    assert mcnemar([[1.0, 0.0], [1.0]], [[1.0], [0.0]]) is None
    assert mcnemar([[0.5], [1.0]], [[1.0], [0.0]]) is None
    assert mcnemar([[1.0], [1.0]], [[1.0, 1.0], [0.0]]) is None


def test_equal_models_and_models_that_always_differ():
    same = compare(greedy("1010"), greedy("1010"))
    assert (same.difference, same.stderr, same.p, same.bootstrap_p, same.mcnemar) == (0, 0, 1, 1, 1)
    apart = compare(greedy("1111"), greedy("0000"))
    assert (apart.difference, apart.low, apart.bootstrap_low, apart.stderr) == (1, 1, 1, 0)
    assert not any(np.isnan(value) for value in (*vars(same).values(), *vars(apart).values()))


@pytest.mark.parametrize("ours, theirs", [("10", "101"), ("1", "0"), ("", "")])
def test_other_problems_are_refused(ours, theirs):
    with pytest.raises(ValueError, match="at least two"):
        compare(greedy(ours), greedy(theirs))


def test_a_problem_without_samples_is_refused():
    with pytest.raises(ValueError, match="one sample of each"):
        compare([[1.0], []], [[1.0], [0.0]])


def test_equal_models_differ_in_one_comparison_of_twenty():
    """Two models of one chance a problem, 60 problems of 3 and 5 samples: each p falls below .05 in 3 to 7 %."""
    rng = np.random.default_rng(0)
    found = [equal_models(rng) for _ in range(1000)]
    assert np.std([one.difference for one in found]) == pytest.approx(
        np.mean([one.stderr**2 for one in found]) ** 0.5, rel=0.05
    )
    assert 0.03 <= np.mean([one.p < 0.05 for one in found]) <= 0.07
    assert 0.03 <= np.mean([one.bootstrap_p < 0.05 for one in found]) <= 0.07
    assert 0.93 <= np.mean([one.low <= 0 <= one.high for one in found]) <= 0.97


def equal_models(rng: np.random.Generator) -> Comparison:
    """A comparison of two models that solve each problem with the same chance."""
    hard_n = rng.beta(0.5, 0.5, 60)
    return compare(scores_of(rng, hard_n, np.full(60, 3)), scores_of(rng, hard_n, np.full(60, 5)))
