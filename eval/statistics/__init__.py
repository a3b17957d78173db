"""Scores with their uncertainty, and tests of them. Pure functions; a score is a number a sample, 1.0 right, 0.0 wrong.

In reading order: `means.py` (mean and standard error over problems, also of several samples each; a mean per token),
`intervals.py` (95 % intervals of a mean: Student, Wilson, bootstrap), `pairs.py` (two arms over seeds, two models over
problems, what could have been seen, Holm's correction), `votes.py` (pass@k and maj@k of one problem), `agreement.py`
(Cohen's kappa).
"""

from eval.statistics.agreement import Agreement, agreement, kappa
from eval.statistics.intervals import ALPHA, Bootstrap, bootstrap, student, wilson
from eval.statistics.means import clustered, mean_and_stderr, problem_means, ratio
from eval.statistics.pairs import POWER, Comparison, Paired, compare, detectable, holm, mcnemar, paired
from eval.statistics.votes import majority, pass_at_k

__all__ = [
    "ALPHA", "POWER", "Agreement", "Bootstrap", "Comparison", "Paired", "agreement", "bootstrap", "clustered",
    "compare", "detectable", "holm", "kappa", "majority", "mcnemar", "mean_and_stderr", "paired", "pass_at_k",
    "problem_means", "ratio", "student", "wilson",
]  # fmt: skip
