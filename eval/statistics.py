"""Scores with their uncertainty, and paired tests of them."""

import math
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

ALPHA, POWER = 0.05, 0.8


def mean_and_stderr(scores: list[float]) -> dict[str, float]:
    """Mean of one score a problem, its standard error s/√n (sample deviation, 0 for one problem), and n.

    >>> mean_and_stderr([1.0, 0.0, 1.0, 0.0])
    {'score': 0.5, 'stderr': 0.28867513459481287, 'n': 4}
    """
    n = len(scores)
    stderr = float(np.std(scores, ddof=1)) / math.sqrt(n) if n > 1 else 0.0
    return {"score": float(np.mean(scores)), "stderr": stderr, "n": n}


@dataclass(frozen=True)
class Paired:
    """Mean paired difference of two arms over seeds, its 95 % interval, p of the paired t-test, and what was visible.

    detectable: the smallest true difference that so many seeds of this spread find with 80 % power at p < 0.05.
    """

    difference: float
    low: float
    high: float
    p: float
    detectable: float


def paired(ours: list[float], theirs: list[float]) -> Paired:
    """Compare two arms, seed by seed (at least two); without any spread p is 1 for no difference, and 0 for one."""
    differences = np.subtract(ours, theirs)
    mean, spread = float(differences.mean()), float(differences.std(ddof=1))
    if spread == 0:
        return Paired(mean, mean, mean, float(mean == 0), 0.0)
    test = stats.ttest_rel(ours, theirs)
    low, high = test.confidence_interval(1 - ALPHA)
    return Paired(mean, float(low), float(high), float(test.pvalue), detectable(spread, len(differences)))


def detectable(spread: float, n: int, *, alpha: float = ALPHA, power: float = POWER) -> float:
    """The true mean difference that a two-sided paired t-test of n pairs finds with this power.

    spread: standard deviation of the paired differences. The test statistic follows a noncentral t with δ·√n/spread.
    """
    critical = stats.t.ppf(1 - alpha / 2, n - 1)

    def missing(shift: float) -> float:
        return stats.nct.sf(critical, n - 1, shift) - power  # the wrong side's tail is nothing beside it

    return float(optimize.brentq(missing, 0.0, 10 * critical)) * spread / n**0.5


def holm(p: list[float]) -> list[float]:
    """p-values adjusted for the whole family, Holm's step-down.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = np.argsort(p)
    stepped = np.maximum.accumulate([(len(p) - rank) * p[i] for rank, i in enumerate(order)])
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(1.0, stepped)
    return adjusted.tolist()
