r"""Hostile answers, kind by kind: they hang, crash or fill the memory of a careless grader."""

from __future__ import annotations

import random
from collections.abc import Callable

INJECTIONS = (
    "__import__('os').system('sleep 60')", "exec('while True: pass')", "(lambda f: f(f))(lambda f: f(f))",
    "open('/dev/zero').read()", "[0]*10**11", "().__class__.__bases__[0].__subclasses__()", r"\input{/dev/zero}",
    r"\write18{sleep 60}", r"\def\a{\a\a}\a", "'; import os; os.abort(); '", '"]\n["x", "x"]\ntrue\n',
)  # fmt: skip
NO_NUMBERS = (
    "NaN", "inf", "-inf", r"\frac{0}{0}", r"\infty-\infty", "1/0", "0^{0^{-1}}", r"\log 0", "zoo", "1e999",
    r"\frac{1}{\frac{1}{0}}", r"\tan\frac{\pi}{2}", r"\sqrt{-\infty}", "nan+i*nan",
)  # fmt: skip
EXPONENTS = (
    "(x+y+z)^{N}", "((x+1)^{N}+1)^{N}", "2^{10^{9}}+N", "(x+y+z+v+w)^{99}+N", "1eNNN", "10^{NNN}", "(1+i)^{N.Nx}",
    "2^{N*N*N}", r"\sqrt[N]{N^{N}+x}", r"\sum_{k=1}^{NN} k^{k}", r"\int_0^{\infty} e^{-x^{x}} dx + N",
)  # fmt: skip
"""What would be multiplied or added up for ever; N stands for a number."""
OPEN_ENDS = (
    r"\frac{", r"\left(", "}", r"\begin{pmatrix} 1 & ", r"\boxed{", r"\sqrt[", "^{_{", r"\right]", "$", r"\\", "&",
)  # fmt: skip
SIGNS = (range(0x300, 0x350), [0xFDFA], range(0x20, 0xD800), range(0x1D400, 0x1D7FF), [0x202E, 0])
"""Combining marks, a sign that becomes eighteen, nearly all, mathematical letters, right to left and NUL."""
PAIRS = (("(", ")"), (r"\sqrt{", "}"), (r"\frac{1}{1+", "}"), ("[", "]"), (r"\{", r"\}"))
BAIT = (
    "1 ", "a b ", "1,000,", "answer is ", "$", r"\$", "(a,", r"\text{a", "-", "1.", r"\frac1", "x^", r"\boxed{", "_{1",
    " ", "<", r"\sqrt ", "9 cm ", "**", "e\u0301", r"\left(", r"\\&", "or ", "%", "```", "\n", r"\boxed ", "####",
    "x=", r"\pm", r"\cup", "{,}", r"\ ", r"^\circ", "1e", "1/", r"\begin{pmatrix}", "a_1", "I", r"\mathrm{a}",
)  # fmt: skip
"""Pieces that a regular expression may read in many ways when they come by the thousand."""


def powers(rng: random.Random) -> str:
    """A tower of powers."""
    height = rng.choice((3, 4, 9, 90, 2_000))
    return "^{".join(str(rng.randint(2, 99)) for _ in range(height)) + "}" * (height - 1)


def factorials(rng: random.Random) -> str:
    """Factorials of factorials, and binomials, of large numbers."""
    n = rng.randint(10**3, 10**9)
    return rng.choice((f"{n}!", f"(({n}!)!)!", f"{n % 99}!!!!", rf"\binom{{{n}}}{{{n // 2}}}", f"({n}-1)!+x"))


def nesting(rng: random.Random) -> str:
    """Brackets, roots or fractions in each other."""
    (start, end), depth = rng.choice(PAIRS), rng.choice((20, 60, 130, 5_000))
    return start * depth + str(rng.randint(2, 99)) + end * depth


def braces(rng: random.Random) -> str:
    """100 kB of braces, balanced or not."""
    return rng.choice(("{" * 50_000 + "}" * 50_000, "{}" * 50_000, "}" * 100_000, "{" * 100_000)) + str(rng.random())


def exponents(rng: random.Random) -> str:
    """One of EXPONENTS."""
    return rng.choice(EXPONENTS).replace("N", str(rng.randint(100, 999)))


def decimals(rng: random.Random) -> str:
    """Numbers of up to 200,000 digits, and fractions of such."""
    digits = "".join(rng.choices("0123456789", k=rng.choice((50, 180, 390, 4_400, 200_000))))
    return rng.choice(
        (f"0.{digits}", f"1{digits}", rf"\frac{{1{digits}}}{{7{digits}}}", f"1{digits}/3", f".{digits}e9")
    )


def bait(rng: random.Random) -> str:
    """Two pieces of BAIT by the thousand."""
    return "".join(piece * rng.choice((30, 300, 3_000, 20_000)) for piece in rng.sample(BAIT, 2)) + "!"


def unicode_junk(rng: random.Random) -> str:
    """Code points of one of SIGNS."""
    signs = rng.choice(SIGNS)
    return "".join(chr(rng.choice(signs)) for _ in range(rng.choice((40, 400, 9_000))))


def not_numbers(rng: random.Random) -> str:
    """NaN, infinities and divisions by zero, in an expression."""
    return f"{rng.choice(NO_NUMBERS)} + {rng.randint(1, 999)}{rng.choice(('', 'x', '!'))}"


def unbalanced(rng: random.Random) -> str:
    """LaTeX that is never closed, or closes what was never open."""
    return "".join(rng.choices(OPEN_ENDS, k=rng.choice((1, 9, 60, 5_000)))) + str(rng.randint(2, 99))


def matrices(rng: random.Random) -> str:
    """Matrices of up to thousands of cells, and determinants."""
    size, cell = rng.choice(((5, "x_{%d}"), (9, "%d"), (50, "%d"), (90, "x^{%d}")))
    rows = r" \\ ".join(" & ".join(cell % rng.randint(2, 999) for _ in range(size)) for _ in range(size))
    kind = rng.choice("pbv") + "matrix"
    return rf"\begin{{{kind}}} {rows} \end{{{kind}}}"


def injections(rng: random.Random) -> str:
    """Programs, for a reader that evaluates what it reads."""
    return f"{rng.choice(INJECTIONS)}{rng.choice(('', ' + ', '#'))}{rng.randint(1, 999)}"


KINDS: dict[str, Callable[[random.Random], str]] = {
    kind.__name__: kind
    for kind in (
        powers, factorials, nesting, braces, exponents, decimals, bait, unicode_junk, not_numbers, unbalanced, matrices,
        injections,
    )
}  # fmt: skip
"""From a random generator to a hostile answer of this kind."""
