"""Worked addition, digit by digit from the right, up to 3 digits: the toy task of the quickstart.

    345+678=   5+8=13,4+7+1=12,3+6+1=10,1:1023
    question   columns from the right; a carry is the last `+1`, or alone where no digits are left; the final number

A pupil may *forget* a carry that is due: `5+8=13,4+7=11,3+6+1=10,1:1013` forgot the first of three.
A hash splits the pairs, never a seed: whatever the seed, no held-out sum (nor its mirror b+a) is trained on. Version 1.
"""

import random
import zlib
from collections.abc import Iterator
from itertools import islice
from typing import Literal

from eval.tasks.base import GREEDY, Problem, Task
from opd.errors import DataError
from opd.rollout.engine import Sampling

Split = Literal["train", "test"]

MARKER = ":"
ALPHABET = "0123456789+=," + MARKER
PAD, EOS, UNKNOWN = "<pad>", "<eos>", "<unk>"
VOCABULARY = (PAD, EOS, UNKNOWN, *ALPHABET)
MAX_DIGITS = 3
USUAL_PROBLEMS = 400
MAX_PROBLEMS = 20_000
LONGEST_ANSWER = len("9+9=18,9+9+1=19,9+9+1=19,1:1998") + len([EOS])


def question(a: int, b: int) -> str:
    """The prompt of one problem.

    >>> question(345, 678)
    '345+678='
    """
    return f"{a}+{b}="


def worked(a: int, b: int, *, forget: float = 0.0, rng: random.Random | None = None) -> str:
    """The worked answer, where each carry that is due is forgotten with probability `forget` (drawn from `rng`).

    >>> worked(95, 7)
    '5+7=12,9+0+1=10,1:102'
    >>> worked(95, 7, forget=1.0)
    '5+7=12,9+0=9:92'
    """
    rng = rng or random.Random(0)
    chunks, digits, carry = [], "", False
    for x, y in _columns(a, b):
        total = x + y + carry
        chunks.append(f"{x}+{y}{'+1' if carry else ''}={total}")
        digits = str(total % 10) + digits
        carry = total >= 10 and rng.random() >= forget
    if carry:
        chunks.append("1")
        digits = "1" + digits
    return ",".join(chunks) + MARKER + digits


def split_of(a: int, b: int) -> Split:
    """The split that a+b and b+a belong to: about one pair in ten is held out."""
    low, high = sorted((a, b))
    return "test" if zlib.crc32(question(low, high).encode()) % 10 == 0 else "train"


def draws(split: Split, seed: int) -> Iterator[tuple[int, int]]:
    """Endless pairs of one split, with repetition; 1, 2 and 3 digits are equally likely for either number."""
    rng = random.Random(seed)
    while True:
        pair = _number(rng), _number(rng)
        if split_of(*pair) == split:
            yield pair


def problems(split: Split, n: int, seed: int) -> list[Problem]:
    """The first `n` different problems of `draws`, one row each.

    >>> sorted(problems("test", 1, seed=0)[0])
    ['answer', 'question']

    Short sums run out first (the test split holds about ten pairs of single digits); `n` is at most 20,000.
    """
    if not 0 <= n <= MAX_PROBLEMS:
        raise ValueError(f"{n} different problems were asked for; the task gives 0 to {MAX_PROBLEMS}. Ask for fewer.")
    return [{"question": question(a, b), "answer": str(a + b)} for a, b in islice(_distinct(draws(split, seed)), n)]


def load(n: int | None = None) -> list[Problem]:
    """The first n held-out problems of seed 0; None takes 400."""
    n = USUAL_PROBLEMS if n is None else n
    if n > MAX_PROBLEMS:
        raise DataError(f"task arithmetic has {MAX_PROBLEMS:,} problems, not {n:,}; ask for fewer")
    return problems("test", n, seed=0)


def _columns(a: int, b: int) -> list[tuple[int, int]]:
    """The digits of both numbers from the right, the shorter one filled with zeros."""
    width = max(len(str(a)), len(str(b)))
    return [(a // 10**k % 10, b // 10**k % 10) for k in range(width)]


def _number(rng: random.Random) -> int:
    digits = rng.randint(1, MAX_DIGITS)
    return rng.randrange(0 if digits == 1 else 10 ** (digits - 1), 10**digits)


def _distinct(pairs: Iterator[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    seen = set()
    for pair in pairs:
        if pair not in seen:
            seen.add(pair)
            yield pair


TASK = Task(
    name="arithmetic",
    version=1,
    load=load,
    instruction="",
    sampling=Sampling(samples=1, max_new_tokens=LONGEST_ANSWER, temperature=GREEDY),
)
