"""Scores with their uncertainty."""

import math

import numpy as np


def mean_and_stderr(scores: list[float]) -> dict[str, float]:
    """Mean of one score a problem, its standard error s/√n (sample deviation, 0 for one problem), and n.

    >>> mean_and_stderr([1.0, 0.0, 1.0, 0.0])
    {'score': 0.5, 'stderr': 0.28867513459481287, 'n': 4}
    """
    n = len(scores)
    stderr = float(np.std(scores, ddof=1)) / math.sqrt(n) if n > 1 else 0.0
    return {"score": float(np.mean(scores)), "stderr": stderr, "n": n}
