"""A process that answers `same mathematics?` line by line, and may be killed: `python -m opd.grading.worker`.

Each line in is a JSON list of two LaTeX expressions, each line out `true` or `false`. Imports nothing heavy of ours.
"""

from __future__ import annotations

import json
import logging
import resource
import signal
import sys
from types import FrameType

SECONDS = 1.0
"""Time for one question; what Python can't interrupt is ended from outside (`isolated.py`)."""
MEMORY_BYTES = 2 << 30
RECURSION = 2_000


class Late(BaseException):
    """SECONDS are over. No Exception, so that nobody's `except Exception` swallows it."""


def main() -> None:
    """Answer until the other side closes."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    sys.setrecursionlimit(RECURSION)
    signal.signal(signal.SIGALRM, _late)
    logging.disable(logging.CRITICAL)
    answers, sys.stdout = sys.stdout, sys.stderr
    same("x+1", "1+x")
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(*json.loads(line))), file=answers, flush=True)


def answer(found: str, gold: str) -> bool:
    """Whether both are the same mathematics; False where that takes too long, too much memory, or raises."""
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        return same(found, gold)
    except (Exception, Late):
        return False
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def same(found: str, gold: str) -> bool:
    """Whether math-verify reads both and finds them equal."""
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    as_written = NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=False, boxed="none")
    readers = [LatexExtractionConfig(normalization_config=as_written), ExprExtractionConfig()]
    given, known = (parse(f"${text}$", extraction_config=readers, parsing_timeout=None) for text in (found, gold))
    if not given or not known:
        return False
    return bool(verify(known, given, timeout_seconds=None)) or same_complex(given[0], known[0])


def same_complex(given: object, known: object) -> bool:
    """Whether two expressions are equal with i as the imaginary unit, where one of them has it."""
    from sympy import Expr, I, simplify

    if not (isinstance(given, Expr) and isinstance(known, Expr)):
        return False
    units = {symbol: I for symbol in given.free_symbols | known.free_symbols if symbol.name == "i"}
    difference = simplify((given - known).subs(units)) if units else given
    return bool(units and difference.is_number and abs(complex(difference)) < 1e-9)


def _late(signum: int, frame: FrameType | None) -> None:
    raise Late


if __name__ == "__main__":
    main()
