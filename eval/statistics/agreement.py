"""How far two raters agree, beyond what chance alone would give."""

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Agreement:
    """Shares of n items on which two raters agree: observed, expected by chance, and `kappa` of both."""

    observed: float
    expected: float
    kappa: float | None
    n: int


def kappa(observed: float, expected: float) -> float | None:
    """Cohen's κ = (observed − expected) / (1 − expected): 1 is full agreement, 0 is what chance gives, below is less.

    None where chance alone agrees always: nothing is left to show. Any expectation may be given: for open answers, two
    models of accuracies a and b that err independently agree with a·b + (1 − a)(1 − b) on what is right. Cohen, 1960,
    Educational and Psychological Measurement 20, 37.

    >>> kappa(0.7, 0.5), kappa(1.0, 1.0)
    (0.3999999999999999, None)
    """
    return (observed - expected) / (1 - expected) if expected < 1 else None


def agreement(ours: Sequence[Hashable], theirs: Sequence[Hashable]) -> Agreement:
    """Two raters' labels of the same items; by chance both say label l with p_ours(l) · p_theirs(l), summed over l.

    A label means the same at every item (right or wrong, A to E); None is a label as others. Raises ValueError where
    the lengths differ, or there are no items.

    >>> agreement("AABB", "AABA")
    Agreement(observed=0.75, expected=0.5, kappa=0.5, n=4)
    """
    n = len(ours)
    if not n or n != len(theirs):
        raise ValueError(f"{n} and {len(theirs)} labels: both raters must label the same items, at least one")
    observed = sum(a == b for a, b in zip(ours, theirs, strict=True)) / n
    mine, other = Counter(ours), Counter(theirs)
    expected = sum(mine[label] * other[label] for label in mine) / n**2
    return Agreement(observed, expected, kappa(observed, expected), n)
