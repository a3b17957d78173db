"""Worked chains of two skills on 4-digit numbers, digit by digit: the toy task of recipes/comparison.

    8352-1234r=   2-4=8,5-3-1=1,3-2=1,8-1=7:7118;8,81,811,8117:8117
    question      a number and two operations: + - * (by one digit), r (reverse), s (sort the digits)
    answer        each operation's work, `:` and its result; carries and borrows are the last `+1`, `+2` or `-1`

A pupil may *forget* a borrow that is due: `2-4=8,5-3=2,…` forgot one. Few tokens of a mixed rollout hang on it.
A hash splits the questions, never a seed: whatever the seed, no held-out question is trained on. Version 1.
"""

import random
import zlib
from collections.abc import Iterator
from itertools import zip_longest
from typing import Literal

from eval.tasks.arithmetic import EOS, PAD, UNKNOWN
from eval.tasks.base import GREEDY, Problem, Task
from opd.errors import DataError
from opd.rollout.engine import Sampling

Split = Literal["train", "test"]
Chain = tuple[str, ...]
"""A number and its operations: ("8352", "-1234", "r")."""

ALPHABET = "0123456789+-*rs<=,;:"
VOCABULARY = (PAD, EOS, UNKNOWN, *ALPHABET)
SKILLS = "+-*rs"
OPERATIONS = 2
LEAST, MOST = 1000, 9999
USUAL_PROBLEMS = 400
MAX_PROBLEMS = 20_000
LONGEST_ANSWER = 2 * len("9*9=81,9*9+8=89,9*9+8=89,9*9+8=89:89991") + len(";") + len([EOS])


def question(chain: Chain) -> str:
    """The prompt of one problem.

    >>> question(("8352", "-1234", "r"))
    '8352-1234r='
    """
    return "".join(chain) + "="


def worked(chain: Chain, *, forget: float = 0.0, rng: random.Random | None = None) -> str:
    """The worked answer, where each borrow that is due is forgotten with probability `forget` (drawn from `rng`).

    >>> worked(("8352", "-1234", "r"))
    '2-4=8,5-3-1=1,3-2=1,8-1=7:7118;8,81,811,8117:8117'
    >>> worked(("8352", "*2", "s"))
    '2*2=4,5*2=10,3*2+1=7,8*2=16:16704;0<1674,1<674,4<67,6<7:01467'
    """
    rng = rng or random.Random(0)
    number, *operations = chain
    parts = []
    for operation in operations:
        work, number = _worked(number, operation, forget, rng)
        parts.append(f"{','.join(work)}:{number}")
    return ";".join(parts)


def result(chain: Chain) -> str:
    """The final number, by plain arithmetic.

    >>> result(("8352", "-1234", "r"))
    '8117'
    """
    number, *operations = chain
    for operation in operations:
        number = _applied(number, operation)
    return number


def split_of(chain: Chain) -> Split:
    """The split that a question belongs to: about one in ten is held out."""
    return "test" if zlib.crc32(question(chain).encode()) % 10 == 0 else "train"


def draws(split: Split, seed: int) -> Iterator[Chain]:
    """Endless chains of one split; all skills are equally likely, and every number has four digits and no leading 0."""
    rng = random.Random(seed)
    while True:
        skills = rng.choices(SKILLS, k=OPERATIONS)
        while (chain := _drawn(skills, rng)) is None:
            continue
        if split_of(chain) == split:
            yield chain


def problems(split: Split, n: int, seed: int) -> list[Problem]:
    """The first `n` different problems of `draws`, one row each; `n` is at most 20,000.

    >>> sorted(problems("test", 1, seed=0)[0])
    ['answer', 'question']
    """
    if not 0 <= n <= MAX_PROBLEMS:
        raise ValueError(f"{n} different problems were asked for; the task gives 0 to {MAX_PROBLEMS}. Ask for fewer.")
    seen: dict[Chain, None] = {}
    for chain in draws(split, seed):
        if len(seen) == n:
            break
        seen[chain] = None
    return [{"question": question(chain), "answer": result(chain)} for chain in seen]


def lessons(forget: float, seed: int) -> Iterator[tuple[str, str]]:
    """Endless training questions with worked answers, borrows forgotten as `forget` says."""
    rng = random.Random(seed)
    for chain in draws("train", seed):
        yield question(chain), worked(chain, forget=forget, rng=rng)


def load(n: int | None = None) -> list[Problem]:
    """The first n held-out problems of seed 0; None takes 400."""
    n = USUAL_PROBLEMS if n is None else n
    if n > MAX_PROBLEMS:
        raise DataError(f"task skills has {MAX_PROBLEMS:,} problems, not {n:,}; ask for fewer")
    return problems("test", n, seed=0)


def _drawn(skills: list[str], rng: random.Random) -> Chain | None:
    """A number and operands for these skills, or None where a result would not have four digits."""
    chain = (str(rng.randint(LEAST, MOST)),)
    for skill in skills:
        number = int(result(chain))
        low, high = {"+": (LEAST, MOST - number), "-": (LEAST, number - LEAST), "*": (2, MOST // number)}.get(
            skill, (0, 0)
        )
        if high < low or (skill in "rs" and "0" in str(number)):
            return None
        chain = (
            *chain,
            skill if skill in "rs" else f"{skill}{rng.randint(low, min(high, 9) if skill == '*' else high)}",
        )
    return chain


def _applied(number: str, operation: str) -> str:
    match operation[0]:
        case "+":
            return str(int(number) + int(operation[1:]))
        case "-":
            return str(int(number) - int(operation[1:]))
        case "*":
            return str(int(number) * int(operation[1:]))
        case "r":
            return number[::-1]
    return "".join(sorted(number))


def _worked(number: str, operation: str, forget: float, rng: random.Random) -> tuple[list[str], str]:
    """The work of one operation, chunk by chunk, and the number that it comes to."""
    match operation[0]:
        case "r":
            return [number[::-1][: k + 1] for k in range(len(number))], number[::-1]
        case "s":
            return _sorting(number)
        case "-":
            return _subtracting(number, operation[1:], forget, rng)
    return _carrying(number, operation[0], operation[1:])


def _carrying(number: str, sign: str, operand: str) -> tuple[list[str], str]:
    """Addition, or multiplication by one digit, column by column from the right; the last total is written whole."""
    chunks, digits, carry = [], "", 0
    others = operand[::-1] if sign == "+" else operand * len(number)
    for x, y in zip_longest(number[::-1], others, fillvalue="0"):
        total = (int(x) + int(y) if sign == "+" else int(x) * int(y)) + carry
        chunks.append(f"{x}{sign}{y}{f'+{carry}' if carry else ''}={total}")
        digits, carry = f"{total % 10}{digits}", total // 10
    return chunks, (str(carry) if carry else "") + digits


def _subtracting(number: str, operand: str, forget: float, rng: random.Random) -> tuple[list[str], str]:
    chunks, digits, borrow = [], "", False
    for x, y in zip(number[::-1], operand[::-1], strict=True):
        left = int(x) - int(y) - borrow
        chunks.append(f"{x}-{y}{'-1' if borrow else ''}={left % 10}")
        digits = f"{left % 10}{digits}"
        borrow = left < 0 and rng.random() >= forget
    return chunks, digits


def _sorting(number: str) -> tuple[list[str], str]:
    """The least digit that is left, and the others in their order."""
    chunks, done, left = [], "", number
    while len(left) > 1:
        least = min(left)
        left = left.replace(least, "", 1)
        chunks.append(f"{least}<{left}")
        done += least
    return chunks, done + left


TASK = Task(
    name="skills",
    version=1,
    load=load,
    instruction="",
    sampling=Sampling(samples=1, max_new_tokens=LONGEST_ANSWER, temperature=GREEDY),
)
