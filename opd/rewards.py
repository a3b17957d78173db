"""The one grader: rewards in training and scores in eval/ both come from here."""

from __future__ import annotations

import logging
import re

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

NUMBER = re.compile(
    r"(?<![\d.])(?:(?<![\w)])[-+])?(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+|/\d+)?"
)
"""A sign belongs to a number only where nothing is subtracted; decimals, exponents and fractions are whole."""

LONGEST = 300
"""Characters of an answer that are still read as mathematics; longer ones are equal only as text."""

logging.getLogger("math_verify").setLevel(logging.CRITICAL)


def grade(completion: str, answer: str) -> float:
    """1.0 if the completion's final answer equals `answer`, else 0.0.

    The final answer is the last \\boxed{…}, or else the last number of the text. Equal as text is equal; anything else
    is compared as mathematics by math-verify.

    >>> grade("so it is \\\\boxed{1{,}000}", "1000"), grade("5 apples and 7", "5")
    (1.0, 0.0)
    """
    found = final_answer(completion)
    return float(found is not None and (equal(found, answer) or equal(_only_number(found), answer)))


def equal(found: str, answer: str) -> bool:
    """Whether two answers are the same text or the same mathematics."""
    if _plain(found) == _plain(answer):
        return True
    if len(found) > LONGEST:
        return False
    readers = [LatexExtractionConfig(), ExprExtractionConfig()]
    gold, given = (parse(f"${text}$", extraction_config=readers, parsing_timeout=1) for text in (answer, found))
    return bool(gold and given and verify(gold, given, timeout_seconds=1))


def final_answer(completion: str) -> str | None:
    """The contents of the last \\boxed{…}, braces balanced, or else the last number, or else None."""
    start = completion.rfind("\\boxed{")
    if start >= 0 and (inside := _braced(completion[start + len("\\boxed") :])) is not None:
        return inside
    numbers = NUMBER.findall(completion)
    return numbers[-1] if numbers else None


def _only_number(text: str) -> str:
    """The one number of a boxed answer with words (`18 dollars`), or else the whole text."""
    numbers = NUMBER.findall(text)
    return numbers[0] if len(numbers) == 1 and re.search(r"[A-Za-z]{2}", text) and "\\" not in text else text


def _braced(text: str) -> str | None:
    depth = 0
    for i, sign in enumerate(text):
        depth += {"{": 1, "}": -1}.get(sign, 0)
        if depth == 0:
            return text[1:i]
    return None


def _plain(text: str) -> str:
    """Without spaces, dollar signs and commas between thousands: 1{,}000 is 1000, and {1,5} stays a set of two."""
    return re.sub(r"[\s$]|(?<=\d),(?=\d{3}(?!\d))", "", text.replace("{,}", ",")).rstrip(".")
