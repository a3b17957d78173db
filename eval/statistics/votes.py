"""What k samples of one problem are worth together: one of them right (pass@k), or their majority (maj@k)."""

from collections import Counter
from collections.abc import Hashable, Sequence
from fractions import Fraction
from math import comb

Ways = Counter[tuple[int, int]]
"""(votes still to be drawn, classes with as many votes as the winner) → in how many ways."""


def pass_at_k(correct: int, samples: int, k: int) -> float:
    """The probability that some of k samples is right: 1 − C(n − c, k) / C(n, k), unbiased from c right ones of n.

    Exact in integers, rounded once. Raises ValueError where k > n. Codex, arXiv 2107.03374, eq. 1.

    >>> pass_at_k(1, 4, 1), pass_at_k(2, 4, 2), pass_at_k(3, 4, 2)
    (0.25, 0.8333333333333334, 1.0)
    """
    _check(samples, k)
    if not 0 <= correct <= samples:
        raise ValueError(f"{correct} of {samples} samples can't be right")
    return (comb(samples, k) - comb(samples - correct, k)) / comb(samples, k)


def majority(answers: Sequence[Hashable | None], correct: Sequence[float], k: int | None = None) -> float:
    """The probability that the vote of k of a problem's n samples, drawn without replacement, is right.

    answers: of each sample, the class of answers that it belongs to (labels that are equal when answers are), or None
    where it has none and doesn't vote. correct: 1.0 or 0.0 of each sample; a class counts as its samples' mean. Classes
    with equally many votes share the credit; no vote at all is wrong. k: all n by default, so the vote itself. Exact:
    draws are counted class by class, as hypergeometric probabilities. Raises ValueError where k > n. The vote is that
    of arXiv 2203.11171, its mean over all draws what eq. 1 of arXiv 2107.03374 is for pass@k.

    >>> majority(["7", "7", "8", None], [1.0, 1.0, 0.0, 0.0]), majority(["7", "8"], [1.0, 0.0])
    (1.0, 0.5)
    >>> majority(["7", "7", "8"], [1.0, 1.0, 0.0], k=1)
    0.6666666666666666
    """
    k = len(answers) if k is None else k
    _check(len(answers), k)
    votes, right = Counter[Hashable](), Counter[Hashable]()
    for answer, score in zip(answers, correct, strict=True):
        if answer is not None:
            votes[answer] += 1
            right[answer] += Fraction(score)
    silent = len(answers) - votes.total()
    won = (
        right[answer] / mine * _wins(mine, [other for label, other in votes.items() if label != answer], silent, k)
        for answer, mine in votes.items()
        if right[answer]
    )
    return float(sum(won, Fraction(0)) / comb(len(answers), k))


def _wins(mine: int, others: list[int], silent: int, k: int) -> Fraction:
    """In how many of the C(n, k) draws a class of `mine` samples has the most votes; a tie of r counts as 1/r."""
    total = Fraction(0)
    for most in range(1, min(mine, k) + 1):
        ways: Ways = Counter({(k - most, 1): comb(mine, most)})
        for other in others:
            ways = _draw(ways, other, most)
        total += sum(Fraction(many * comb(silent, left), tied) for (left, tied), many in ways.items())
    return total


def _draw(ways: Ways, samples: int, most: int) -> Ways:
    """The ways after a further class of so many samples got its votes, at most `most`."""
    after: Ways = Counter()
    for (left, tied), many in ways.items():
        for votes in range(min(samples, most, left) + 1):
            after[left - votes, tied + (votes == most)] += many * comb(samples, votes)
    return after


def _check(samples: int, k: int) -> None:
    if not 1 <= k <= samples:
        raise ValueError(f"k = {k} of {samples} samples: k must be from 1 to the number of samples")
