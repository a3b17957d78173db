"""A process that answers `same mathematics?` line by line, and may be killed: `python -m opd.grading.worker`.

Each line in is a JSON list of two LaTeX expressions, each line out `true`, `false`, or `null` where that took too much
processor time or memory. Imports nothing heavy of ours.
"""

from __future__ import annotations

import json
import logging
import math
import resource
import signal
import sys
import time
from types import FrameType

CPU_SECONDS = 1.0
"""Processor time for one question, so that a verdict doesn't depend on what else the machine does."""
LAST_CPU_SECONDS = 3
"""After so much the kernel ends the process; it is for what Python can't interrupt."""
MEMORY_BYTES = 2 << 30
RECURSION = 2_000


class Late(BaseException):
    """CPU_SECONDS are over. No Exception, so that nobody's `except Exception` swallows it."""


def main() -> None:
    """Answer until the other side closes."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    sys.setrecursionlimit(RECURSION)
    signal.signal(signal.SIGPROF, _late)
    logging.disable(logging.CRITICAL)
    answers, sys.stdout = sys.stdout, sys.stderr
    same("x+1", "1+x")
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        _end_after(LAST_CPU_SECONDS)
        print(json.dumps(answer(*json.loads(line))), file=answers, flush=True)


def answer(found: str, gold: str) -> bool | None:
    """Whether both are the same mathematics; False where that raises, None where it takes too long or much memory."""
    try:
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        return same(found, gold)
    except (MemoryError, Late):
        return None
    except Exception:
        return False
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


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


def _end_after(seconds: int) -> None:
    """Let the kernel end this process when it has used so much more processor time."""
    used = math.ceil(time.process_time())
    _, hardest = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (used + seconds, hardest))


def _late(signum: int, frame: FrameType | None) -> None:
    raise Late


if __name__ == "__main__":
    main()
