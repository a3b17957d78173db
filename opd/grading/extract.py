"""The final answer of a completion, and the rule that found it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

NUMBER = re.compile(
    r"(?<![\d.])(?:(?<![\w)])[-+−])?(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+|/\d+)?"
)
"""A sign belongs to a number only where nothing is subtracted; decimals, exponents and fractions are whole."""
MATHEMATICS = re.compile(r"\$\$(.+?)\$\$|(?<![\\$])\$((?:\\\$|[^$\n])+?)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
PHRASE = re.compile(r"####|\banswer\b[^.\n:=]{0,40}?(?:\bis\b|\bare\b|[:=])", re.IGNORECASE)
"""GSM8K's mark, or words such as `the final answer is`, `Answer:`."""
END = re.compile(r"\n|(?<!\d)\.(?=\s|$)|(?<=\d)\.(?=\s|$)|(?<=[}$\]*])\.(?=\s|$)|;")
TAIL = 4_000
"""Characters in which the last value is looked for."""
BOX = re.compile(r"\\(?:boxed|fbox)\s*(?=\{)|\\boxed\s+(?P<bare>[^\s$.,{}\\]+)")
THOUGHTS_BEGIN, THOUGHTS_END = "<think>", "</think>"

RULES = ("boxed", "phrase", "last", "none", "unfinished")
"""In order: the last box; what follows the last `answer is`; the last expression or number; nothing; a thought that
never ended, which gets no credit."""


@dataclass(frozen=True)
class Final:
    """A final answer as it was written, and the rule of RULES that found it; empty where there is none."""

    text: str
    rule: str


def final_answer(completion: str, *, thinking: bool = False) -> Final:
    """The final answer by the first rule that finds one.

    thinking: the prompt opened a thought, so all before `</think>` is one, and a completion without it is unfinished.

    >>> final_answer("so the answer is **18 dollars**.")
    Final(text='18 dollars', rule='phrase')
    """
    _, mark, said = completion.rpartition(THOUGHTS_END)
    if not mark and (thinking or THOUGHTS_BEGIN in completion):
        return Final("", "unfinished")
    if THOUGHTS_BEGIN in said:
        return Final("", "unfinished")
    for rule, find in FINDERS.items():
        if found := find(said):
            return Final(found, rule)
    return Final("", "none")


def opens_thought(prompt: str) -> bool:
    """Whether a prompt ends inside a thought, as some chat templates begin the answer.

    >>> opens_thought("user: 2+2? assistant: <think>"), opens_thought("assistant: <think></think>")
    (True, False)
    """
    return prompt.rfind(THOUGHTS_BEGIN) > prompt.rfind(THOUGHTS_END)


def boxed(text: str) -> str:
    """The contents of the last box that is closed, braces balanced; a last box that is left open is none."""
    boxes = list(BOX.finditer(text))
    if not boxes:
        return ""
    last = boxes[-1]
    return (last["bare"] or _braced(text, last.end())).strip()


def after_phrase(text: str) -> str:
    """What follows the last `answer is` on its line, or on the next where its own ends there; decoration removed."""
    phrases = list(PHRASE.finditer(text))
    if not phrases:
        return ""
    rest = text[phrases[-1].end() :].lstrip(" \t*_:=\n")
    if span := MATHEMATICS.match(rest):
        return _inside(span)
    end = END.search(rest)
    return rest[: end.start() if end else len(rest)].strip(" \t*_`.")


def last_value(text: str) -> str:
    """The last number, or the mathematics between dollars that it stands in or that follows it."""
    text = text[-TAIL:]
    numbers, spans = list(NUMBER.finditer(text)), list(MATHEMATICS.finditer(text))
    if spans and (not numbers or numbers[-1].start() < spans[-1].end()):
        return _inside(spans[-1])
    return numbers[-1].group() if numbers else ""


def _inside(span: re.Match[str]) -> str:
    return next(group for group in span.groups() if group).strip()


def _braced(text: str, start: int) -> str:
    depth = 0
    for i in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if depth == 0:
            return text[start + 1 : i]
    return ""


FINDERS: dict[str, Callable[[str], str]] = {"boxed": boxed, "phrase": after_phrase, "last": last_value}
