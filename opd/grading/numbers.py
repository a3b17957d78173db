"""Numbers as people and LaTeX write them, read exactly."""

from __future__ import annotations

import re
from fractions import Fraction

LONGEST = 60
"""Digits of a number that is still read; longer ones are equal only as text."""
DECIMAL = r"(?:\d+(?:\.\d*)?|\.\d+)"
SIGNED = re.compile(rf"([-+]?)({DECIMAL})$")
FRACTION = re.compile(rf"([-+]?)(?:\\frac\{{([-+]?{DECIMAL})\}}\{{([-+]?{DECIMAL})\}}|({DECIMAL})/({DECIMAL}))$")
MIXED = re.compile(r"([-+]?)(\d+)(?:\s*\\frac\{(\d+)\}\{(\d+)\}|\s+(\d+)/(\d+))$")
REPEATING = re.compile(r"([-+]?)(\d*)\.(\d*)\\overline\{(\d+)\}$")
CONTINUED = re.compile(r"([-+]?)(\d*)\.(\d*?)(?:(\d)\4{2,}|(\d{2,9}?)\5+)\\ldots$")
"""0.333… and 0.1212…: one digit at least three times, or more at least twice."""
SCIENTIFIC = re.compile(rf"([-+]?{DECIMAL})(?:[eE]|(?:\\times|\\cdot|\*)10\^)\{{?([-+]?\d{{1,3}})\}}?$")


ROUNDED = re.compile(r"[-+]?\d*\.(\d{6,})$")
"""Decimals of which enough digits are shown to stand for a fraction that no decimal is equal to."""


def tightened(text: str) -> str:
    """Without spaces, but for one between digits: 1 1/2 is not 11/2."""
    return re.sub(r"(?<!\d) | (?!\d)", "", re.sub(r"\s+", " ", text))


def rounds(text: str, exact: Fraction) -> bool:
    """Whether a decimal of six digits or more is a periodic fraction, rounded or cut off at its last digit.

    >>> rounds("0.333333", Fraction(1, 3)), rounds("0.33", Fraction(1, 3)), rounds("0.4999999", Fraction(1, 2))
    (True, False, False)
    """
    match = ROUNDED.match(text)
    if not match or len(text) > LONGEST or 10**LONGEST % exact.denominator == 0:
        return False
    return abs(Fraction(text) - exact) < Fraction(1, 10 ** len(match[1]))


def number(text: str) -> Fraction | None:
    """The value of an integer, decimal, fraction, mixed number or power of ten times a number, exactly, or None.

    >>> number("-1\\\\frac{1}{2}"), number("2.50"), number("1.5\\\\times10^{3}"), number("x")
    (Fraction(-3, 2), Fraction(5, 2), Fraction(1500, 1), None)
    """
    text = text.strip()
    if len(text) > LONGEST:
        return None
    tight = tightened(text)
    if match := SIGNED.match(tight):
        return _signed(match[1], Fraction(match[2]))
    if match := MIXED.match(text):
        above, below = (match[3] or match[5]), (match[4] or match[6])
        return _signed(match[1], int(match[2]) + Fraction(int(above), int(below))) if int(below) else None
    if match := FRACTION.match(tight):
        above, below = Fraction(match[2] or match[4]), Fraction(match[3] or match[5])
        return _signed(match[1], above / below) if below else None
    if match := REPEATING.match(tight) or CONTINUED.match(tight):
        digits = match[4] or match[5]
        period = Fraction(int(digits), 10 ** len(digits) - 1) / 10 ** len(match[3])
        return _signed(match[1], Fraction(f"{match[2] or 0}.{match[3] or 0}") + period)
    if match := SCIENTIFIC.match(tight):
        return Fraction(match[1]) * Fraction(10) ** int(match[2])
    return None


def _signed(sign: str, value: Fraction) -> Fraction:
    return -value if sign == "-" else value
