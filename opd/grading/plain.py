r"""An answer written plainly: one spelling for what means the same, without spacing, units and words around it."""

from __future__ import annotations

import re
import unicodedata

from opd.grading.units import DEGREES, MONEY, UNIT_TAIL, scaled

MONTHS = "January|February|March|April|May|June|July|August|September|October|November|December"

SIGNS = {
    "−": "-", "–": "-", "×": r"\times ", "·": r"\cdot ", "÷": "/", "π": r"\pi ", "∞": r"\infty ", "∪": r"\cup ",
    "∩": r"\cap ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "±": r"\pm ", "∈": r"\in ", "θ": r"\theta ",
    "²": "^{2}", "³": "^{3}", "½": r"\frac{1}{2}", "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}", "¼": r"\frac{1}{4}",
    "¾": r"\frac{3}{4}", "⅕": r"\frac{1}{5}", "⅛": r"\frac{1}{8}", "∅": r"\emptyset ",
    "°": r"^\circ ", "€": " euros ", "£": " pounds ", "¢": " cents ",
    "“": '"', "”": '"', "’": "'", "‘": "'", "√": r"\sqrt ",
}  # fmt: skip
"""What people type instead of LaTeX."""
WORDS = re.compile(
    r"\\(?:text(?:bf|it|rm|normal|tt|sf)?|math(?:rm|bf|it|sf|tt)|mbox|hbox|operatorname\*?)\s*\{([^{}]*)\}"
)
SPACES = re.compile(r"(?<!\\)\\[,;:!> ]|\\q?quad\b|\\(?:hspace|phantom)\*?\{[^{}]*\}|~|\\displaystyle\b|\\textstyle\b")
SIZES = re.compile(r"\\(?:left|right|[bB]igg?[lrm]?)(?![A-Za-z])\.?")
DATE = re.compile(rf"\b(\d{{1,2}})(?:st|nd|rd|th)?(?: of)? ({MONTHS})\b", re.IGNORECASE)
MARKS = re.compile(r"\\(?:underline|uline)(?=\s*\{)|\\(?:text)?color\s*\{[^{}]*\}")
DOTS = re.compile(r"(?<=\d)\s?(?:\.\.\.|\\[lc]?dots(?:[cbmi]\b)?)$")
CHOOSE = re.compile(r"\{([^{}]*)\\choose\b([^{}]*)\}")
ANGLE = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![a-z])")
PERCENT = re.compile(r"\\?%|\bper\s?cent\b")
FUNCTIONS = set(
    re.findall(
        r"\w+",
        """sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln lg exp max min gcd lcm mod pmod det lim
        inf sup sqrt frac binom pi theta alpha beta gamma delta lambda mu phi omega infty""",
    )
)
"""Letters in a row that are mathematics, with or without their backslash."""
WORD_TAIL = re.compile(r"(?<=[\d})])\s+[A-Za-z][A-Za-z'-]+(?:\s+[A-Za-z][A-Za-z'-]*)*\s*$")
"""`18 apples`: words after a value, of which none tells another amount or joins several values."""
CONNECTIVE = re.compile(r"\b(?:or|and|to|if|not|is|[AaPp][Mm])\b")
AMOUNT = re.compile(
    r"\b(?:not|never|than|at (?:least|most)|up to|(?:hundred|thousand|million|billion|trillion|dozen)s?|out of|half"
    r"|twice|halves|thirds|fourths|fifths|sixths|sevenths|eighths|ninths|tenths|hundredths|thousandths|double|triple|squared"
    r"|cubed|plus|minus|negative|mod|modulo|base|factorial|except|between|times (?:as|the|more|less|[a-z]\b)"
    r"|(?:over|under|above|below) (?:\$|\d|[a-z]$)|or (?:more|less))\b",
    re.IGNORECASE,
)
"""Words that make another amount of a number beside them."""
LEFT_SIDE = re.compile(
    r"^((?:\([a-z](?:\s*,\s*[a-z])+\)|[A-Za-z]|\\[a-z]+)[A-Za-z]?(?:_\{?\w+\}?)?'*(?:\([^()=]*\))?)\s*"
    r"(?:=|\\in(?![a-z])|:=)\s*"
)
RELATION = re.compile(r"[=<>]|\\(?:le|ge|in|ne)(?![a-z])")


def plain(text: str) -> str:
    r"""The answer plainly, words kept.

    >>> plain(r"\left( \dfrac12,\, \text{ 1,000 cm}^2 \right)")
    '( \\frac{1}{2}, 1,000 cm ^2 )'
    """
    for sign, spelled in SIGNS.items():
        text = text.replace(sign, spelled)
    text = unicodedata.normalize("NFKC", text).strip().strip("`").strip()
    text = DATE.sub(r"\2 \1", CHOOSE.sub(r"\\binom{\1}{\2}", MARKS.sub("", text)))
    text = re.sub(r"\*\*|__(?=\w)|(?<=\w)__", "", text)
    text = re.sub(r"\\[()\[\]]|^\$+|\$+$", " ", text).replace("$$", " ")
    text = re.sub(r"(?<=\d)(?:,\\!|\\[,!;]|\{,\}|\\ )(?=\d{3}(?!\d))", "", text)
    text = re.sub(r"(?<=\d)\s*\{,\}\s*\\?!?(?=\d{3}(?!\d))", "", text).replace("{,}", ",")
    while (shorter := WORDS.sub(r" \1 ", text)) != text:
        text = shorter
    text = re.sub(r"\b([ap])\.\s?m\b", r"\1m", text, flags=re.IGNORECASE).replace(r"\varnothing", r"\emptyset")
    text = re.sub(r"^\((\w+)\)(?=_)", r"\1", text)
    text = re.sub(r"^(?:negative|minus)\s+(?=[\d\\.$])", "-", scaled(text), flags=re.IGNORECASE)
    text = text.replace("<=", r"\le ").replace(">=", r"\ge ")
    text = SIZES.sub("", SPACES.sub(" ", text))
    text = re.sub(r"\\[dtc]frac(?![A-Za-z])", r"\\frac", text)
    text = _braced_arguments(re.sub(r"\\(?:leq|leqslant)\b", r"\\le", re.sub(r"\\(?:geq|geqslant)\b", r"\\ge", text)))
    text = re.sub(r"\\(?:lt|gt)\b", lambda match: {r"\lt": "<", r"\gt": ">"}[match[0]], text)
    text = re.sub(r"\\(?:mid|vert|lvert|rvert)\b", "|", text).replace(r"\cdotp", r"\cdot")
    text = DOTS.sub(r"\\ldots", re.sub(r"\s+", " ", text).strip())
    return text.rstrip(".,;:").strip()


def value(text: str) -> str:
    r"""The plain answer without currency, degrees, percent sign, units, words after it, and its left side.

    >>> value(plain(r"x = 18 \text{ cm}^2")), value("10\\%"), value("f(x) = x^2")
    ('18', '10', 'x^2')
    """
    if ANGLE.search(text):
        text = DEGREES.sub(r" \\cdot \\frac{\\pi}{180}", text)
    text = re.sub(r"\s+", " ", PERCENT.sub("", MONEY.sub("", DEGREES.sub("", text)))).strip()
    text = re.sub(r"^\{(\([^{}]*\))\}$", r"\1", text)
    text = LEFT_SIDE.sub("", text, count=1).strip() if name(text) else text
    text = MONEY.sub("", text).strip()
    text = re.sub(r"(?<=\d)\s*\\(?:rm|it)\b", " ", text)
    bare = UNIT_TAIL.sub("", text).strip()
    bare = bare if bare else text
    words = WORD_TAIL.search(bare)
    if words and not CONNECTIVE.search(words[0]) and not AMOUNT.search(words[0]) and not _functions(words[0]):
        bare = bare[: words.start()].strip()
    return _thousands(bare.rstrip("."))


def name(text: str) -> str:
    r"""What a plain answer says it is the value of, without spaces and braces; empty where it doesn't.

    >>> name("x_{1} = 5"), name(r"y \in [2, 3]"), name("f(x) = x^2"), name("x = 3 = y")
    ('x_1', 'y', 'f(x)', '')
    """
    match = LEFT_SIDE.match(text)
    return re.sub(r"[\s{}]", "", match[1]) if match and len(RELATION.findall(text)) == 1 else ""


def words(text: str) -> str | None:
    """A text answer: letters in small, without spaces, quotes and parentheses; None where it is mathematics."""
    letters = re.sub(r"\\[A-Za-z]+", " ", text)
    found = [word for word in re.findall(r"[A-Za-z]{2,}", letters) if word.lower() not in FUNCTIONS]
    long = [word for word in found if len(word) > 2 or word.lower() in ("no", "am", "pm", "up")]
    if not long or re.search(r"[\^=+*<>]|\\(?:frac|sqrt)", text):
        return None
    return re.sub(r"[\s\"'{}().,$\\-]", "", text).lower()


def percent(text: str) -> bool:
    """Whether the answer is a percentage."""
    return bool(PERCENT.search(text))


def _functions(text: str) -> set[str]:
    return FUNCTIONS & set(text.split())


def _thousands(text: str) -> str:
    """1,000 and 1 000 are 1000 where no bracket makes a list of them."""
    if re.fullmatch(r"[-+]?\d{1,3}(?:[, ]\d{3})+(?:\.\d+)?", text):
        return re.sub(r"[, ]", "", text)
    return text


def _braced_arguments(text: str) -> str:
    r"""Arguments of one sign without braces get them."""
    sign = r"(\\[A-Za-z]+|[^\s{}\\])"
    text = re.sub(rf"\\frac\s*{sign}\s*{sign}", r"\\frac{\1}{\2}", text)
    text = re.sub(rf"\\frac\s*{sign}\s*(?=\{{)", r"\\frac{\1}", text)
    text = re.sub(rf"\\frac\s*(\{{[^{{}}]*\}})\s*{sign}", r"\\frac\1{\2}", text)
    text = re.sub(rf"\\(d|t)?binom\s*{sign}\s*{sign}", r"\\binom{\2}{\3}", text)
    text = re.sub(r"\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}", text)
    text = re.sub(r"\\sqrt\s*(\d+)", r"\\sqrt{\1}", text)
    return re.sub(r"\\sqrt\s*(\\[A-Za-z]+|[A-Za-z])", r"\\sqrt{\1}", text)
