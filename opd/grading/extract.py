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
PHRASE = re.compile(
    r"####|\b(?P<not>(?:to|this|these|that|(?:check|verify|confirm|checking|verifying)(?:\s+(?:the|my|our|your|this))?)"
    r"\s+(?:final\s+)?)?(?:answers?|solution set)\b(?:[^.\n:=,]{0,40}?|,[^.\n:=,]{0,30},\s*)"
    r"(?:\b(?:is|are|(?:would|should|must|will) be)\b(?:\s*:)?|[:=])",
    re.IGNORECASE,
)
"""GSM8K's mark, or words such as `the final answer is`, `Answer:`; `not`: it is no such phrase after these."""
LEAD = re.compile(
    r"[\s*_:=]*(?:(?:thus|therefore|then|now|indeed|simply|just|exactly|actually|also|approximately|about|equal to"
    r"|given by|option|choice)\b[\s,:]*)*[\s*_:=]*",
    re.IGNORECASE,
)
"""Decoration and words between a phrase and its answer."""
VALUE = re.compile(
    r"[-+−±]?\s*(?:\\?\$|[€£])?\s*[-+−]?\s*\.?\d|[-+−±]?\s*[√π∞½⅓⅔¼¾⅕⅛∅]|[-+−]?\\(?![nrt]\b)[a-zA-Z{($]"
    r"|(?:negative|minus|not|at least|at most|(?:less|more|greater|fewer) than)\s+\$?\d"
    r"|[(\[{]\s*[-+−\\\d√π]|[(\[{]\s*[A-Za-z]\s*[),+\-−*/^]"
    r"|[-+−]?[A-Za-z]{1,2}(?:\([A-Za-z]\))?\s*[\^=<>≤≥+*/_]|[-+−]?[A-Za-z](?:\)|[.,:;!*]*\s*(?:$|\n)|\.\s)"
    r"|[-+−]?(?:sqrt|pi|log|ln|sin|cos|tan)\b|[A-Za-z]\s*-\s*\d"
    r"|(?:yes|no|true|false|none|undefined|infinity|even|odd|no (?:real )?solutions?|all real numbers)"
    r"\s*[.,!*]*\s*(?:$|\n)"
    r"|\"[^\"\n]{1,40}\"",
    re.IGNORECASE,
)
"""What an answer begins with: a number, mathematics, a bracket, a variable, a choice letter, a word that answers."""
REMARK = re.compile(
    r"\b(?:based|correct|incorrect|right|wrong|valid|helpful|useful|clear|that|the|an?|not|in|as|it|this|what|how|if"
    r"|we|i|you|they|he|she|to|by|of|for|with|because|since|reasonable|consistent|confirmed|verified|obtained|found"
    r"|below|above|here|unique|complete|also|same|given|answer|shown|expressed|required|rounded|sure|follows?|easy|simple)\b",
    re.IGNORECASE,
)
"""A word of a sentence about an answer, not of an answer in words."""
TEXT = re.compile(r"[A-Za-z][\w'-]*(?: [A-Za-z][\w'-]*){0,3}$")
REASON = re.compile(
    r"(?<=[\s,])\(?(?:since|because|which|where|whereas)\b"
    r"|,\s?\(?(?:so|as|but|for|giving|making|thus|hence|therefore)\b",
    re.IGNORECASE,
)
"""What begins the reason for an answer."""
ASIDE = re.compile(r"\s\((?=[^()]*[a-z]{3})(?![^()]*\bor\b)[^()]*\)$")
"""`(9 a day)` behind an answer."""
CHECK = re.compile(r"\n\s?\n|\b(?:check|verif|confirm|note\b)", re.IGNORECASE)
"""Where a worked answer ends."""
CONCLUSION = re.compile(r",\s(?:so|thus|hence|therefore|making|giving)\b", re.IGNORECASE)
"""What begins, behind a computation, what it was for."""
ARITHMETIC = re.compile(r"(?:[\d\s+\-−*/×÷().,$%^{}]|\\(?:[dt]?frac|times|cdot|div|left|right|sqrt|\$|%))+$")
OPERATION = re.compile(r"[\d)}]\s*[-+−*/×÷^]|\\(?:[dt]?frac|times|cdot|div|sqrt)")
END = re.compile(r"\n|(?<!\d)\.(?=\s|$)|(?<=\d)\.(?=\s|$)|(?<=[}$\]*])\.(?=\s|$)|;|[!?](?=\s|$)(?<=[A-Za-z][!?])")
LABELS = (":", "#")
NOTE = re.compile(r"\n[ \t*_(]*(?:note|remark|disclaimer|n\.b\.)s?\b", re.IGNORECASE)
"""Where a remark behind the answer begins."""
TAIL = 4_000
"""Characters in which the last value, and what follows a phrase, is looked for."""
MOST_BOXES, MOST_PHRASES = 20, 20
BOX = re.compile(r"\\(?:boxed|fbox)\s*(?=\{)|\\boxed\s+(?P<bare>[^\s$.,{}\\]+)")
BETWEEN_BOXES = re.compile(r"(?:[ \t$,&]|\\(?:text\{|[(),;! ])|\}|\b(?:and|or)\b|[A-Za-z] ?=)*$")
"""What joins boxes to one answer: `$\\boxed{2}$ and $\\boxed{3}$`."""
JOINED = re.compile(r"\s*(?:,\s*)?(?:and|or)\b\s*|\s*,\s*")
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
    """The contents of the last box that is closed, braces balanced; a last box that is left open is none.

    Boxes that a comma, `and` or `or` joins to the last one are a list with it.

    >>> boxed(r"$\\boxed{2}$ and $\\boxed{3}$"), boxed(r"\\boxed{2}, no, \\boxed{3}")
    ('2,3', '3')
    """
    boxes = list(BOX.finditer(text))
    contents: list[str] = []
    start = len(text)
    for box in reversed(boxes[-MOST_BOXES:]):
        content, end = _content(text, box)
        if contents and (end > start or not BETWEEN_BOXES.match(text, end, start)):
            break
        if not content.strip():
            break
        contents.insert(0, content.strip())
        start = box.start()
    return ",".join(dict.fromkeys(contents))


def first_box_end(text: str) -> int | None:
    r"""Where the first box ends that holds something and is closed; None where there is none.

    >>> first_box_end(r"so \boxed{\frac{1}{2}}, and \boxed{3}"), first_box_end(r"\boxed{1")
    (22, None)
    """
    found = (_content(text, box) for box in BOX.finditer(text))
    return next((end for content, end in found if content.strip()), None)


def after_phrase(text: str) -> str:
    """What the last `answer is` that a value follows says, on its line or the next; decoration and reasons removed.

    Where no value follows any, the last that a sentence with numbers follows (`Answer: she makes 9 * 2 = 18 dollars`),
    or a few words that can be an answer.

    >>> after_phrase("The answer is 18, since 20 - 2 = 18. This answer is correct.")
    '18'
    """
    phrases = [match for match in PHRASE.finditer(text) if not match["not"]][-MOST_PHRASES:]
    rests = [(match, text[LEAD.match(text, match.end()).end() :][:TAIL]) for match in reversed(phrases)]
    for match, rest in rests:
        if MATHEMATICS.match(rest) or VALUE.match(rest):
            return _leading(rest, labelled=match[0].endswith(LABELS))
    for match, rest in rests:
        if match[0].endswith(LABELS) and (value := last_value(_worked(rest))):
            return value
        if TEXT.match(words := _clause(rest)) and not REMARK.search(words):
            return words
    return ""


def _leading(rest: str, *, labelled: bool) -> str:
    """The value that the text begins with, or the list of such between dollars; the last of a worked answer."""
    spans, at = [], 0
    while span := MATHEMATICS.match(rest, at):
        spans.append(_result(_inside(span)))
        joint = JOINED.match(rest, span.end())
        at = joint.end() if joint else len(rest)
    if spans:
        return ",".join(spans)
    clause = _clause(rest)
    result = _result(clause)
    worked = _worked(rest) if labelled else _sentence(rest)
    return (
        last_value(worked) if result != clause and (CONCLUSION.search(worked) or worked != _sentence(rest)) else result
    )


def _sentence(rest: str) -> str:
    end = END.search(rest)
    return rest[: end.start() if end else len(rest)]


def _worked(rest: str) -> str:
    """The paragraph, up to a check, where it goes on computing after its first sentence; else that sentence."""
    sentence, check = _sentence(rest), CHECK.search(rest)
    paragraph = rest[: check.start() if check else len(rest)]
    return paragraph if "=" in paragraph[len(sentence) :] else sentence


def _clause(rest: str) -> str:
    """The sentence without the reason that it gives and without decoration."""
    sentence = _sentence(rest)
    reason = REASON.search(sentence)
    return ASIDE.sub("", sentence[: reason.start() if reason else len(sentence)].strip(" \t,*_`."))


def _result(text: str) -> str:
    """The right side of a computation's last equals sign; other text as it is."""
    *before, last = text.split("=")
    computed = before and last.strip() and ARITHMETIC.match(before[-1]) and OPERATION.search(before[-1])
    return last.strip() if computed else text


def last_value(text: str) -> str:
    """The last number, or the mathematics between dollars that it stands in or that follows it; remarks don't count."""
    note = NOTE.search(text)
    return (note and _last(text[: note.start()])) or _last(text)


def _last(text: str) -> str:
    text = text[-TAIL:]
    numbers, spans = list(NUMBER.finditer(text)), list(MATHEMATICS.finditer(text))
    if spans and (not numbers or numbers[-1].start() < spans[-1].end()):
        return _inside(spans[-1])
    return numbers[-1].group() if numbers else ""


def _inside(span: re.Match[str]) -> str:
    return next(group for group in span.groups() if group).strip()


def _content(text: str, box: re.Match[str]) -> tuple[str, int]:
    """What a box holds, and where it ends; nothing where it is not closed."""
    return (box["bare"], box.end()) if box["bare"] else _braced(text, box.end())


def _braced(text: str, start: int) -> tuple[str, int]:
    """What the braces that open at `start` hold, and where they end."""
    depth = 0
    for i in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if depth == 0:
            return text[start + 1 : i], i + 1
    return "", len(text)


FINDERS: dict[str, Callable[[str], str]] = {"boxed": boxed, "phrase": after_phrase, "last": last_value}
