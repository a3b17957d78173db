"""Agreement beyond chance, against a textbook's table and the ends of the scale; the package's examples."""

import pytest

from eval.statistics import agreement, kappa


def test_a_textbooks_table():
    """Yes/yes 20, yes/no 5, no/yes 10, no/no 15: observed .7, expected .5 · .6 + .5 · .4 = .5, κ = .4."""
    ours, theirs = "y" * 25 + "n" * 25, "y" * 20 + "n" * 5 + "y" * 10 + "n" * 15
    found = agreement(ours, theirs)
    assert (found.observed, found.expected, found.kappa, found.n) == (0.7, 0.5, pytest.approx(0.4), 50)
    assert agreement(theirs, ours) == found


def test_the_ends_of_the_scale():
    assert kappa(1.0, 0.3) == 1.0 and kappa(0.3, 0.3) == 0.0 and kappa(0.0, 0.5) == -1.0
    assert agreement("AB", "AB").kappa == 1.0 and agreement("AB", "BA").kappa == -1.0
    assert agreement("AA", "AA").kappa is None, "both always say the same"
    assert agreement([None, "A"], [None, "B"]).observed == 0.5


@pytest.mark.parametrize("ours, theirs", [("", ""), ("A", "AB")])
def test_other_items_are_refused(ours, theirs):
    with pytest.raises(ValueError, match="same items"):
        agreement(ours, theirs)
