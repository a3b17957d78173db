"""Paired tests: two arms over seeds, two models over problems, and what so many pairs could have shown."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

from eval.statistics.intervals import ALPHA, bootstrap
from eval.statistics.means import mean_and_stderr, problem_means

POWER = 0.8


@dataclass(frozen=True)
class Paired:
    """Mean difference over pairs (seeds, or problems), its 95 % interval, p of the paired t-test, and what was visible.

    detectable: the smallest true difference that so many pairs of this spread find with 80 % power at p < 0.05.
    """

    difference: float
    low: float
    high: float
    p: float
    detectable: float


def paired(ours: Sequence[float], theirs: Sequence[float]) -> Paired:
    """Compare two arms, pair by pair (at least two).

    Without any spread (but rounding's) there is no t: p is 1 for no difference, else that of n fair coins that fall
    alike, 2/2ⁿ; the interval then has no width and detectable is 0, and neither says anything.
    """
    differences = np.subtract(ours, theirs)
    mean, spread = float(differences.mean()), float(differences.std(ddof=1))
    if spread <= 1e-9 * max(1.0, abs(mean)):
        p = 1.0 if abs(mean) <= 1e-9 else 2.0 ** (1 - len(differences))
        return Paired(mean, mean, mean, p, 0.0)
    test = stats.ttest_rel(ours, theirs)
    low, high = test.confidence_interval(1 - ALPHA)
    return Paired(mean, float(low), float(high), float(test.pvalue), detectable(spread, len(differences)))


@dataclass(frozen=True)
class Comparison(Paired):
    """Two models on the same n problems: `Paired` of the problems' means, and the same question asked in other ways.

    ours, theirs: mean of problem means. stderr: of the difference, clustered by problem. bootstrap_*: 95 % interval and
    p from resampled problems. mcnemar: exact p of the problems that one model alone solves; None where a problem has
    several samples, or scores that are neither 0 nor 1.
    """

    ours: float
    theirs: float
    n: int
    stderr: float
    bootstrap_low: float
    bootstrap_high: float
    bootstrap_p: float
    mcnemar: float | None


def compare(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]], *, seed: int = 0) -> Comparison:
    """Compare two models, problem by problem (at least two, in the same order), each with its own number of samples.

    With d_i the difference of the two means of problem i, stderr² = Σ (d_i − d̄)² / (n (n − 1)): what is hard for both
    cancels (arXiv 2411.00640, paired analysis). detectable: what so many problems with so many samples could have
    shown; 0 where the differences have no spread to tell it from. Raises ValueError where the numbers of problems
    differ, and where a problem has no sample.
    """
    if len(ours) != len(theirs) or len(ours) < 2:
        raise ValueError(f"{len(ours)} and {len(theirs)} problems: a comparison needs the same ones, at least two")
    mine, other = problem_means(ours), problem_means(theirs)
    differences = mine - other
    resampled = bootstrap(differences, seed=seed)
    return Comparison(
        **vars(paired(mine, other)),
        ours=float(mine.mean()),
        theirs=float(other.mean()),
        n=len(mine),
        stderr=mean_and_stderr(differences)["stderr"],
        bootstrap_low=resampled.low,
        bootstrap_high=resampled.high,
        bootstrap_p=resampled.p,
        mcnemar=mcnemar(ours, theirs),
    )


def mcnemar(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> float | None:
    """Exact two-sided p of McNemar's test: of the b + c problems that one model alone solves, each is a fair coin.

    Only for one sample of 0 or 1 a problem: samples of one problem are no further coins, and votes or means of them
    are another question. None elsewhere. McNemar, 1947, Psychometrika 12, 153.

    >>> mcnemar([[1.0], [1.0], [1.0], [0.0]], [[0.0], [0.0], [0.0], [0.0]])
    0.25
    """
    models = [[score for scores in model for score in scores] for model in (ours, theirs)]
    if any(len(scores) != 1 for scores in (*ours, *theirs)) or not {*models[0], *models[1]} <= {0.0, 1.0}:
        return None
    differences = np.subtract(*models)
    alone, both = int((differences > 0).sum()), int((differences != 0).sum())
    return float(stats.binomtest(alone, both).pvalue) if both else 1.0


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
