"""Numbers are read exactly, and nothing else is a number."""

from fractions import Fraction

import pytest

from opd.grading.numbers import number

READ = {
    "7": 7, "-3": -3, "+4": 4, "0.75": Fraction(3, 4), ".5": Fraction(1, 2), "2.": 2, "025": 25, "1e3": 1000,
    r"\frac{-6}{8}": Fraction(-3, 4), "3/4": Fraction(3, 4), r"1\frac{1}{2}": Fraction(3, 2), "-1 1/2": Fraction(-3, 2),
    r"1.5\times10^{-3}": Fraction(3, 2000), r"2\cdot10^4": 20000, r"\frac{0.5}{2}": Fraction(1, 4), "- 3": -3,
}  # fmt: skip
REFUSED = ["", "x", "1,000", "1/0", r"\frac{1}{0}", r"1\frac{1}{0}", "3x", "1..2", "--3", "9" * 100, "1e9999", "½"]


@pytest.mark.parametrize("text", READ)
def test_read(text: str):
    assert number(text) == READ[text]


@pytest.mark.parametrize("text", REFUSED)
def test_refused(text: str):
    assert number(text) is None
