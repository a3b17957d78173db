"""An answer in other forms, as the end of a completion: each means the same, or is None where it doesn't apply."""

from __future__ import annotations

import re
from collections.abc import Callable

from opd.grading.numbers import number

INTEGER = re.compile(r"-?\d+$")
SMALL_FRACTION = re.compile(r"(-?)\\d?frac\{(\d+)\}\{(\d+)\}$")


def box(text: str) -> str:
    """As a completion ends."""
    return rf"So it is $\boxed{{{text}}}$."


def spaced(answer: str) -> str:
    """More spaces."""
    return box("  " + re.sub(r"([+=,])(?!\d)", r" \1\\, ", answer) + " ")


def tall(answer: str) -> str | None:
    r"""\dfrac for \frac."""
    return box(answer.replace(r"\frac", r"\dfrac")) if r"\frac" in answer else None


def slashed(answer: str) -> str | None:
    r"""1/2 for \frac{1}{2}."""
    return box(f"{m[1]}{m[2]}/{m[3]}") if (m := SMALL_FRACTION.match(answer)) else None


def decimal(answer: str) -> str | None:
    """An exact decimal for a fraction or an integer."""
    value = number(answer)
    if value is None or 10**6 % value.denominator:
        return None
    digits = f"{float(value):.6f}".rstrip("0")
    return box(digits + "0" if digits.endswith(".") else digits)


def with_unit(answer: str) -> str | None:
    """A unit behind a bare number."""
    return box(rf"{answer} \text{{ units}}") if number(answer) is not None else None


def in_words(answer: str) -> str:
    """A sentence, no box."""
    return f"Adding up, the final answer is ${answer.strip()}$."


def bold(answer: str) -> str:
    """Markdown."""
    return f"**Answer:** ${answer.strip()}$"


def with_left_side(answer: str) -> str | None:
    """x = 5 for 5."""
    return box(f"x = {answer}") if number(answer) is not None else None


def with_thousands(answer: str) -> str | None:
    """1,234 for 1234."""
    return box(f"{int(answer):,}") if INTEGER.match(answer) and abs(int(answer)) > 999 else None


def stopped(answer: str) -> str:
    """A full stop in the box."""
    return box(f"{answer}.")


def grown(answer: str) -> str | None:
    r"""\left( and \right)."""
    if "(" not in answer or r"\left" in answer:
        return None
    return box(re.sub(r"(?<!\\)([\])])", r"\\right\1", re.sub(r"(?<!\\)([\[(])", r"\\left\1", answer)))


def reordered(answer: str) -> str | None:
    """A list of solutions from the last to the first."""
    if not re.fullmatch(r"[^()\[\]]+", answer) or "," not in answer or re.search(r"\d,\d{3}|,\\!|\{,\}", answer):
        return None
    if r"\text" in answer:
        return None
    inside = re.fullmatch(r"\\\{(.*)\\\}", answer)
    parts = [part.strip() for part in (inside[1] if inside else answer).split(",")]
    return box(rf"\{{{', '.join(parts[::-1])}\}}" if inside else ", ".join(parts[::-1]))


def without_degrees(answer: str) -> str | None:
    """90 for 90 degrees."""
    bare = re.sub(r"\^\{?\\circ\}?", "", answer)
    return box(f"{bare} degrees") if bare != answer and INTEGER.match(bare) else None


def plain_text(answer: str) -> str | None:
    r"""even for \text{even}."""
    return box(m[1]) if (m := re.fullmatch(r"\\text\{([A-Za-z ]+)\}", answer)) else None


def minus_sign(answer: str) -> str | None:
    """The typographic minus."""
    return box(answer.replace("-", "−")) if "-" in answer and "text" not in answer else None


FORMS: tuple[Callable[[str], str | None], ...] = (
    spaced, tall, slashed, decimal, with_unit, in_words, bold, with_left_side, with_thousands, stopped, grown,
    reordered, without_degrees, plain_text, minus_sign,
)  # fmt: skip
