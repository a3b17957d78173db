r"""Whether two final answers are the same: as text, as numbers, part by part, and only then as algebra."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from opd.grading.isolated import same_mathematics
from opd.grading.numbers import number
from opd.grading.plain import percent, plain, value, words

LONGEST = 400
"""Characters of an answer that are still read as mathematics; longer ones are equal only as text."""
LONGEST_GROUP = 40
"""Parts of a list or matrix that are compared one by one."""
OPEN, CLOSE = "([{", ")]}"
MATRIX = re.compile(r"^\\begin\{([pbvBV]?matrix|array)\}(?:\{[lcr|]*\})?(.*)\\end\{\1\}$", re.DOTALL)
BASE = re.compile(r"^([0-9A-Za-z]+)_\{?(\d+)\}?$")
CHOICE = re.compile(r"^\(?([A-Za-z])\)?$")
CHOSEN = re.compile(r"^\(?([A-Za-z])(?:\)|[.:]?$|[.:]\s)")
CHAIN = re.compile(r"^(.+?)(<|>|\\le|\\ge)(?![a-z])(.+?)(?:(<|>|\\le|\\ge)(?![a-z])(.+))?$")
CODE = re.compile(r"\\|\w\(|[=_]")
UNFINISHED = re.compile(r"(?:[-+*/=^_]|\\(?:times|cdot|div|pm))$")
SET_NAMES = re.compile(r"\\(?:mathbb|Bbb)\{?R\}?")


def equal(found: str, gold: str) -> bool:
    r"""Whether a careful marker would take `found` for `gold`.

    >>> equal("18 dollars", "18"), equal(r"\{2, 1\}", r"\{1,2\}"), equal("(2,1)", "(1,2)"), equal("0.33", r"\frac13")
    (True, True, False, False)
    """
    ours, theirs = plain(found[: 10 * LONGEST]), plain(gold)
    if not found.strip() or len(found) > 10 * LONGEST:
        return found.strip() == gold.strip() != ""
    if _tight(ours) == _tight(theirs):
        return True
    if max(len(ours), len(theirs)) > LONGEST or not balanced(ours):
        return False
    if (choice := CHOICE.match(theirs)) and (choice[1].isupper() or theirs.startswith("(")):
        return bool(
            (mine := re.match(r"^\(?([A-Za-z])(?:\)|[.:]?$|[.:]\s)", ours)) and mine[1].upper() == choice[1].upper()
        )
    try:
        return _same_percent(ours, theirs) or _same(_typed(value(ours)), _typed(value(theirs)))
    except RecursionError:  # brackets in brackets, hundreds deep
        return False


def balanced(text: str) -> bool:
    """Whether braces close what they open."""
    depth = 0
    for sign in re.sub(r"\\[{}]", "", text):
        depth += {"{": 1, "}": -1}.get(sign, 0)
        if depth < 0:
            return False
    return depth == 0


@dataclass(frozen=True)
class Group:
    """Parts between brackets, or alternatives: `ordered` with their brackets, else a set."""

    parts: tuple[str, ...]
    ordered: bool
    brackets: str = ""


def _typed(text: str) -> str | Group:
    """The text, or what it is a group of."""
    text = SET_NAMES.sub(r"(-\\infty,\\infty)", text.strip())
    for read in READERS:
        if (group := read(text)) is not None:
            return group
    return text


def _union(text: str) -> Group | None:
    parts = _split(text, r"\cup")
    return Group(parts, ordered=False, brackets="union") if len(parts) > 1 else None


def _set(text: str) -> Group | None:
    if match := re.fullmatch(r"\\\{(.*)\\\}|\{(.*)\}", text, re.DOTALL):
        inside = match[1] if match[1] is not None else match[2]
        return Group(_listed(inside), ordered=False) if balanced(inside) else None
    return None


def _interval(text: str) -> Group | None:
    """a<x<b and x≥a as intervals."""
    chain = CHAIN.match(text)
    if not chain or "=" in text:
        return None
    left, sign, middle, other, right = (part.strip() if part else part for part in chain.groups())
    if other:
        if sign.strip("\\")[0] != other.strip("\\")[0] or not re.fullmatch(r"\\?[a-z]+|[A-Z]", middle):
            return None
        if sign in (">", r"\ge"):
            left, sign, other, right = right, _turned(other), _turned(sign), left
        return Group((left, right), True, ("(" if sign == "<" else "[") + (")" if other == "<" else "]"))
    if re.fullmatch(r"[a-zA-Z]", middle) and not re.fullmatch(r"[a-zA-Z]", left):
        left, sign, middle = middle, _turned(sign), left
    if not re.fullmatch(r"[a-zA-Z]|\\[a-z]+", left):
        return None
    if sign in ("<", r"\le"):
        return Group((r"-\infty", middle), True, "()" if sign == "<" else "(]")
    return Group((middle, r"\infty"), True, "()" if sign == ">" else "[)")


def _turned(sign: str) -> str:
    return {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le"}[sign]


def _tuple(text: str) -> Group | None:
    """(a, b), [a, b), and (a) as a."""
    if len(text) > 1 and text[0] in "([" and text[-1] in ")]" and _closes_last(text):
        parts = _split(text[1:-1], ",")
        if len(parts) > 1:
            return Group(parts, True, text[0] + text[-1])
    return None


def _matrix(text: str) -> Group | None:
    if match := MATRIX.match(text.strip("[]()")):
        rows = [re.sub(r"\\hline", "", row).strip() for row in re.split(r"\\\\|\\cr(?![a-z])", match[2])]
        rows = [row for row in rows if row]
        cells = tuple(cell.strip() for row in rows for cell in row.split("&"))
        shape = f"{len(rows)}x{len(cells) // max(1, len(rows))}"
        return Group(cells, True, f"{'det' if match[1][0] == 'v' else 'matrix'} {shape}")
    return None


def _list(text: str) -> Group | None:
    """Several solutions: 1, 2 or 1 and 2, each ± as two."""
    parts = _listed(text)
    return Group(parts, ordered=False) if len(parts) > 1 else None


READERS: tuple[Callable[[str], Group | None], ...] = (_matrix, _union, _set, _tuple, _interval, _list)


def _listed(text: str) -> tuple[str, ...]:
    parts = [part for piece in _split(text, ",") for part in re.split(r"\s+(?:or|and)\s+|^(?:or|and)\s+", piece)]
    parts = [value(part) for part in parts if part.strip()]
    return tuple(each for part in parts for each in _both_signs(part))


def _both_signs(text: str) -> tuple[str, ...]:
    if text.count(r"\pm") == 1:
        return tuple(text.replace(r"\pm", sign).strip().removeprefix("+").strip() for sign in "+-")
    return (text,)


def _split(text: str, separator: str) -> tuple[str, ...]:
    """At separators that no bracket encloses."""
    parts, depth, start, i = [], 0, 0, 0
    while i < len(text):
        depth += (text[i] in OPEN) - (text[i] in CLOSE)
        if depth == 0 and text.startswith(separator, i):
            parts.append(text[start:i].strip())
            i += len(separator)
            start = i
            continue
        i += 1
    return (*parts, text[start:].strip())


def _closes_last(text: str) -> bool:
    """Whether the first bracket is closed by the last sign; [ may be closed by )."""
    depth = 0
    for i, sign in enumerate(text):
        depth += (sign in OPEN) - (sign in CLOSE)
        if depth == 0:
            return i == len(text) - 1
    return False


def _same(ours: str | Group, theirs: str | Group) -> bool:
    if isinstance(ours, Group) and isinstance(theirs, Group):
        return _same_groups(ours, theirs)
    if isinstance(ours, Group) or isinstance(theirs, Group):
        group, text = (ours, theirs) if isinstance(ours, Group) else (theirs, ours)
        return len(group.parts) == 1 and not group.ordered and _same(_typed(group.parts[0]), text)
    return _same_leaves(ours, theirs)


def _same_groups(ours: Group, theirs: Group) -> bool:
    if len(ours.parts) != len(theirs.parts) or len(ours.parts) > LONGEST_GROUP:
        return False
    if ours.ordered != theirs.ordered or (
        ours.brackets != theirs.brackets and "union" not in ours.brackets + theirs.brackets
    ):
        return False
    if ours.ordered:
        pairs = zip(ours.parts, theirs.parts, strict=True)
        return all(_same(_typed(value(a)), _typed(value(b))) for a, b in pairs)
    left = list(theirs.parts)
    for part in ours.parts:
        match = next((i for i, other in enumerate(left) if _same(_typed(value(part)), _typed(value(other)))), None)
        if match is None:
            return False
        del left[match]
    return True


def _same_percent(ours: str, theirs: str) -> bool:
    """0.1 is 10 %."""
    a, b = number(value(ours)), number(value(theirs))
    if a is None or b is None or percent(ours) == percent(theirs):
        return False
    return a == b or (a / 100 == b if percent(ours) else a == b / 100)


def _same_leaves(ours: str, theirs: str) -> bool:
    if _tight(ours) == _tight(theirs):
        return True
    a, b = number(ours), number(theirs)
    if a is not None and b is not None:
        return a == b
    if words(ours) is not None or words(theirs) is not None:
        return words(ours) == words(theirs) or (b is not None and a is None and _only_number(ours) == b)
    if any(mark in ours + theirs for mark in (":", '"', "?")):
        return False
    mine, known = BASE.match(_tight(ours)), BASE.match(_tight(theirs))
    if (mine or known) and not (mine and known):
        return (mine[1] if mine else _tight(ours)) == (known[1] if known else _tight(theirs))
    if mine and known:
        return False
    if tower(ours) or not ours or UNFINISHED.search(ours):
        return False
    return same_mathematics(ours, theirs)


def _only_number(text: str) -> object:
    """The one number among words, or None."""
    numbers = re.findall(r"-?\d[\d,]*(?:\.\d+)?(?:/\d+)?", text)
    return number(numbers[0].replace(",", "")) if len(numbers) == 1 and not CODE.search(text) else None


def tower(text: str) -> bool:
    """Powers of powers of numbers, or of thousands: they would be multiplied out."""
    return bool(
        re.search(r"\d\s*\^\s*\{?[^{}^]*\d\s*\^\s*\{?[^{}^]*\d\s*\^", text)
        or re.search(r"\^\s*\{?-?\d{4,}|\d{4,}\s*!|!\s*!|\)\s*!\s*\)", text)
    )


def _tight(text: str) -> str:
    """Without spaces, and with one spelling of exponents and subscripts of one sign."""
    return re.sub(r"([\^_])\{(\w)\}", r"\1\2", re.sub(r"\s", "", text))
