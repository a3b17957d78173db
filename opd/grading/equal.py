r"""Whether two final answers are the same: as text, as numbers, part by part, and only then as algebra."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain

from opd.grading.isolated import Undecided, same_mathematics
from opd.grading.numbers import number, rounds, tightened
from opd.grading.plain import AMOUNT, RELATION, name, percent, plain, value, words
from opd.grading.units import same_units

LONGEST = 400
"""Characters of an answer that are still read as mathematics; longer ones are equal only as text."""
LONGEST_GROUP = 40
"""Parts of a list or matrix that are compared one by one."""
OPEN, CLOSE = "([{", ")]}"
MATRIX = re.compile(r"^\\begin\{([pbvBV]?matrix|array)\}(?:\{[lcr|]*\})?(.*)\\end\{\1\}$", re.DOTALL)
BASE = re.compile(r"^([0-9A-Za-z]*\d[0-9A-Za-z]*)_\{?(\d+)\}?$")
CHOICE = re.compile(r"^\(?([A-Za-z])\)?$")
CHOSEN = re.compile(r"^\(?([A-Za-z])(?:\)?[.:]?$|\)[.:]?\s*(?=[\w$\\\"])(?!(?:or|and)\b)|[.:]\s)")
CHAIN = re.compile(r"^(.+?)(<|>|\\le|\\ge)(?![a-z])(.+?)(?:(<|>|\\le|\\ge)(?![a-z])(.+))?$")
CODE = re.compile(r"\\|\w\(|[=_]")
APART = re.compile(r"(?<![_\d])\d+\s+\d")
DECIMAL = re.compile(r"(\d*)\.(\d+)")
UNFINISHED = re.compile(r"(?:[-+*/=^_]|\\(?:times|cdot|div|pm|ldots))$")
ALL_REALS = re.compile(
    r"\\(?:mathbb|Bbb)\{?R\}?|^(?:the )?(?:set of )?all real(?: number|s| value| x)?s?(?: of x)?$", re.IGNORECASE
)
BUILDER = re.compile(r"\\\{ ?[a-z] ?(?:\\in ?\\(?:mathbb|Bbb)\{?R\}? ?)?[|:] ?(.*?) ?\\\}")
NOTHING = re.compile(r"^(?:none|no (?:real )?solutions?|(?:the )?empty set|\\?\{ ?\\?\})$", re.IGNORECASE)
CLOCK = re.compile(r"^(\d{1,2}:\d\d) ?[ap]m$", re.IGNORECASE)


def equal(found: str, gold: str) -> bool | None:
    r"""Whether a careful marker would take `found` for `gold`; None where algebra could not be decided in time.

    Units, left sides and bases may be left out, but those that both have must agree. A decimal is equal to a fraction
    without a finite decimal from six right digits on, and to a root or the like never, unless the known answer is a
    decimal itself.

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
        return bool((mine := CHOSEN.match(ours)) and mine[1].upper() == choice[1].upper())
    if not same_units(ours, theirs):
        return False
    try:
        verdicts = (same(ours, theirs) for same in (_same_percent, _same_left_sides, _same_values))
        return next(verdict for verdict in verdicts if verdict is not None)
    except RecursionError:  # brackets in brackets, hundreds deep
        return False
    except Undecided:
        return None


def label(text: str) -> str:
    r"""What equal answers usually share, to count them by: an exact number, parts in order, or text in small letters.

    Units, percent signs and left sides are left out, sets are sorted; empty where there is no answer.

    >>> label(r"x = \dfrac12"), label("50\\%"), label(r"\{2, 1\}"), label("(B)"), label(r"\text{No}")
    ('1/2', '50', '1,2', 'b', 'no')
    """
    said = plain(text[:LONGEST])
    if choice := CHOICE.match(said):
        return choice[1].lower()
    try:
        return _label(_typed(value(said)))
    except RecursionError:
        return _tight(said).lower()


def _label(typed: str | Group) -> str:
    if isinstance(typed, Group):
        parts = [_label(_typed(value(part))) for part in typed.parts]
        around = typed.brackets if typed.ordered else ""
        return around[:1] + ",".join(parts if typed.ordered else sorted(parts)) + around[1:]
    exact = number(typed)
    return str(exact) if exact is not None else words(typed) or _tight(typed).lower()


def balanced(text: str) -> bool:
    """Whether braces close what they open."""
    depth = 0
    for sign in re.sub(r"\\[{}]", "", text):
        depth += {"{": 1, "}": -1}.get(sign, 0)
        if depth < 0:
            return False
    return depth == 0


def _same_left_sides(ours: str, theirs: str) -> bool | None:
    """False where left sides contradict each other, the equations' verdict where one is no name, else None."""
    mine, known = (name(text) or _variable(text) for text in (ours, theirs))
    if mine and known:
        return None if _head(mine, known) == _head(known, mine) else False
    return same_mathematics(ours, theirs) if known and "=" in theirs and _equation(ours) else None


def _head(text: str, other: str) -> str:
    """A name without what it is a function of where the other has no such; sides of a line in one order."""
    text = text if "(" in other else text.partition("(")[0] or text
    return "".join(sorted(text)) if re.fullmatch("[A-Z]{2}", text) else text


def _equation(text: str) -> bool:
    """Whether the text is one equation whose left side is neither a name, nor words, nor a computation."""
    left, mark, _ = text.partition("=")
    letters = re.search("[A-Za-z]", left)
    return bool(mark and letters and len(RELATION.findall(text)) == 1 and not name(text) and words(left) is None)


@dataclass(frozen=True)
class Group:
    """Parts between brackets, or alternatives: `ordered` with their brackets, else a set; `names` of assigned ones."""

    parts: tuple[str, ...]
    ordered: bool
    brackets: str = ""
    names: tuple[str, ...] = ()


def _typed(text: str) -> str | Group:
    """The text, or what it is a group of."""
    text = ALL_REALS.sub(r"(-\\infty,\\infty)", NOTHING.sub(r"\\emptyset", text.strip()))
    for read in READERS:
        if (group := read(text)) is not None:
            return group
    return text


def _builder(text: str) -> Group | None:
    r"""{x | x > 2} as an interval."""
    match = BUILDER.fullmatch(text)
    return _interval(match[1]) if match else None


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
    found = _bounded(text)
    return found[1] if found else None


def _variable(text: str) -> str:
    """The x of a<x<b and x≥a, or nothing."""
    found = _bounded(text)
    return found[0] if found else ""


def _bounded(text: str) -> tuple[str, Group] | None:
    chain = CHAIN.match(text)
    if not chain or "=" in text:
        return None
    left, sign, middle, other, right = (part.strip() if part else part for part in chain.groups())
    if other:
        if sign.strip("\\")[0] != other.strip("\\")[0] or not re.fullmatch(r"\\?[a-z]+|[A-Z]", middle):
            return None
        if sign in (">", r"\ge"):
            left, sign, other, right = right, _turned(other), _turned(sign), left
        return middle, Group((left, right), True, ("(" if sign == "<" else "[") + (")" if other == "<" else "]"))
    if re.fullmatch(r"[a-zA-Z]", middle) and not re.fullmatch(r"[a-zA-Z]", left):
        left, sign, middle = middle, _turned(sign), left
    if not re.fullmatch(r"[a-zA-Z]|\\[a-z]+", left):
        return None
    if sign in ("<", r"\le"):
        return left, Group((r"-\infty", middle), True, "()" if sign == "<" else "(]")
    return left, Group((middle, r"\infty"), True, "()" if sign == ">" else "[)")


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
    return Group(parts, ordered=False, brackets="list") if len(parts) > 1 else None


def _assignments(text: str) -> Group | None:
    """x=1, y=2: values in the order of their names."""
    pieces = _pieces(text)
    names = [name(piece) for piece in pieces]
    if len(pieces) < 2 or not all(names) or len(set(names)) < len(names):
        return None
    pairs = sorted(zip(names, map(value, pieces), strict=True))
    return Group(tuple(said for _, said in pairs), True, "()", tuple(called for called, _ in pairs))


READERS: tuple[Callable[[str], Group | None], ...] = (
    _matrix, _builder, _union, _set, _tuple, _interval, _assignments, _list,
)  # fmt: skip


def _listed(text: str) -> tuple[str, ...]:
    return tuple(each for piece in _pieces(text) for each in _both_signs(value(piece)))


def _pieces(text: str) -> list[str]:
    pieces = [part for piece in _split(text, ",") for part in re.split(r"\s+(?:or|and)\s+|^(?:or|and)\s+", piece)]
    return [piece for piece in pieces if piece.strip()]


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


def _same_values(ours: str, theirs: str) -> bool:
    return _same(_typed(value(ours)), _typed(value(theirs)))


def _same(ours: str | Group, theirs: str | Group) -> bool:
    if isinstance(ours, Group) and isinstance(theirs, Group):
        return _same_groups(ours, theirs)
    if isinstance(ours, Group) and not ours.ordered and len(ours.parts) > 1 and ours.brackets != "union":
        return len(ours.parts) <= LONGEST_GROUP and all(_same(_typed(value(part)), theirs) for part in ours.parts)
    if isinstance(ours, Group) or isinstance(theirs, Group):
        group, text = (ours, theirs) if isinstance(ours, Group) else (theirs, ours)
        return len(group.parts) == 1 and not group.ordered and _same(_typed(group.parts[0]), text)
    return _same_leaves(ours, theirs)


def _same_groups(ours: Group, theirs: Group) -> bool:
    if len(ours.parts) != len(theirs.parts) or len(ours.parts) > LONGEST_GROUP:
        return False
    if ours.names and theirs.names and ours.names != theirs.names:
        return False
    listed = "list" in (ours.brackets, theirs.brackets) and bool(ours.names or theirs.names)
    if not listed and not _same_brackets(ours, theirs):
        return False
    if listed or (ours.ordered and theirs.ordered):
        pairs = zip(ours.parts, theirs.parts, strict=True)
        return all(_same_values(a, b) for a, b in pairs)
    left = list(theirs.parts)
    for part in ours.parts:
        match = _place(part, left)
        if match is None:
            return False
        del left[match]
    return True


def _place(part: str, others: list[str]) -> int | None:
    """Where the part stands among others: as text, which is cheap and always decided, else by value."""
    as_text = (i for i, other in enumerate(others) if _tight(part) == _tight(other))
    by_value = (i for i, other in enumerate(others) if _same_values(part, other))
    return next(chain(as_text, by_value), None)


def _same_brackets(ours: Group, theirs: Group) -> bool:
    """Whether both are ordered between the same brackets, or neither is; assigned values may be a set."""
    kinds = {ours.brackets, theirs.brackets}
    if ours.ordered != theirs.ordered:
        return bool(ours.names or theirs.names) and "" in kinds
    return len(kinds) == 1 or "union" in kinds or kinds == {"", "list"}


def _same_percent(ours: str, theirs: str) -> bool | None:
    """0.1 is 10 %, and so is 10; but 0.5 is not 0.5 %."""
    a, b = number(value(ours)), number(value(theirs))
    if a is None or b is None or percent(ours) == percent(theirs):
        return None
    return (a == b and not 0 < abs(a) < 1) or (a / 100 == b if percent(ours) else a == b / 100)


def _same_leaves(ours: str, theirs: str) -> bool:
    if _tight(ours) == _tight(theirs):
        return True
    a, b = number(ours), number(theirs)
    if a is not None and b is not None:
        return a == b or rounds(ours, b) or rounds(theirs, a)
    if (clock := CLOCK.match(ours)) and clock[1] == theirs:
        return True
    if words(ours) is not None or words(theirs) is not None:
        return words(ours) == words(theirs) or (b is not None and a is None and _only_number(ours) == b)
    if any(mark in ours + theirs for mark in (":", '"', "?")):
        return False
    mine, known = BASE.match(_tight(ours)), BASE.match(_tight(theirs))
    if mine or known:
        return not mine and _tight(ours) == known[1]
    if tower(ours) or not ours or UNFINISHED.search(ours) or any(APART.search(text) for text in (ours, theirs)):
        return False
    return same_mathematics(ours if DECIMAL.search(theirs) else DECIMAL.sub(_as_fraction, ours), theirs)


def _as_fraction(decimal: re.Match[str]) -> str:
    """A decimal exactly, so that it is not taken for what it is near to."""
    whole, digits = decimal.groups()
    return rf"{{\frac{{{whole}{digits}}}{{1{'0' * len(digits)}}}}}"


def _only_number(text: str) -> object:
    """The one number among words, or None."""
    if AMOUNT.search(text):
        return None
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
    return re.sub(r"([\^_])\{(\w)\}", r"\1\2", tightened(text))
