"""Means over problems with their standard errors, for one sample a problem or several."""

import math
from collections.abc import Sequence
from itertools import chain

import numpy as np


def mean_and_stderr(scores: Sequence[float]) -> dict[str, float]:
    """Mean of one score a problem, its standard error s/√n (sample deviation, 0 for one problem), and n.

    >>> mean_and_stderr([1.0, 0.0, 1.0, 0.0])
    {'score': 0.5, 'stderr': 0.28867513459481287, 'n': 4}
    """
    n = len(scores)
    stderr = float(np.std(scores, ddof=1)) / math.sqrt(n) if n > 1 else 0.0
    return {"score": float(np.mean(scores)), "stderr": stderr, "n": n}


def clustered(scores_by_problem: Sequence[Sequence[float]]) -> dict[str, float | None]:
    """Mean of problem means, standard error clustered by problem, n problems, samples, and what sampling adds.

    With s_ij sample j of problem i, m_i samples there, and x_i their mean, problems weigh alike however many samples
    they have: score x̄ = Σ x_i / n, stderr² = Σ (x_i − x̄)² / (n (n − 1)), which is `mean_and_stderr` of the x_i. It
    holds both what problems differ by and what samples of one problem do; for equal m_i it is the clustered error of
    arXiv 2411.00640 times √(n / (n − 1)), which makes it unbiased.

    within: √(Σ v_i / m_i) / n with v_i = Σ_j (s_ij − x_i)² / (m_i − 1), the part of stderr that comes from sampling.
    Endless samples of the same problems would leave √(stderr² − within²); only more problems lower that. A problem of
    one sample counts with the mean v of the others; None where no problem has two. Raises ValueError without a sample.

    >>> clustered([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    {'score': 0.5, 'stderr': 0.2886751345948129, 'n': 3, 'samples': 6, 'within': 0.16666666666666666}
    """
    means_n = problem_means(scores_by_problem)
    problem, scores, samples_n = _flat(scores_by_problem)
    squares_n = np.bincount(problem, (scores - means_n[problem]) ** 2)
    return mean_and_stderr(means_n) | {"samples": len(scores), "within": _within(squares_n, samples_n)}


def problem_means(scores_by_problem: Sequence[Sequence[float]]) -> np.ndarray:
    """The mean [n] of each problem's samples; ValueError where there is no problem, or one without a sample."""
    problem, scores, samples_n = _flat(scores_by_problem)
    if not samples_n.all() or not len(samples_n):
        raise ValueError("a mean over problems needs at least one problem, and one sample of each")
    return np.bincount(problem, scores) / samples_n


def _flat(scores_by_problem: Sequence[Sequence[float]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The problem and the score of each sample, and the number of samples of each problem."""
    samples_n = np.array([len(scores) for scores in scores_by_problem], dtype=int)
    scores = np.fromiter(chain.from_iterable(scores_by_problem), float, samples_n.sum())
    return np.repeat(np.arange(len(samples_n)), samples_n), scores, samples_n


def _within(squares_n: np.ndarray, samples_n: np.ndarray) -> float | None:
    """What sampling adds to the standard error. squares_n: sums of squared deviations from each problem's mean."""
    several_n = samples_n > 1
    if not several_n.any():
        return None
    variance_n = np.divide(squares_n, samples_n - 1, out=np.zeros(len(samples_n)), where=several_n)
    variance_n[~several_n] = variance_n[several_n].mean()
    return math.sqrt((variance_n / samples_n).sum()) / len(samples_n)


def ratio(totals: Sequence[float], counts: Sequence[int]) -> dict[str, float]:
    """Σ totals / Σ counts (a mean per token, from sums and lengths of n texts), clustered by text.

    With r the ratio, stderr² = n / (n − 1) · Σ (total_i − r count_i)² / (Σ count)², the ratio estimator's linearised
    variance (Cochran, Sampling Techniques, 1977, section 6.3); 0 for one text. n is of texts.

    >>> ratio([1.0, 3.0], [2, 2])
    {'score': 1.0, 'stderr': 0.5, 'n': 2}
    """
    totals, counts, n = np.asarray(totals, float), np.asarray(counts, float), len(totals)
    score = totals.sum() / counts.sum()
    squares = ((totals - score * counts) ** 2).sum()
    stderr = math.sqrt(n / (n - 1) * squares) / counts.sum() if n > 1 else 0.0
    return {"score": float(score), "stderr": float(stderr), "n": n}
