"""Text that was made to be hard to read is read in time, and programs in it don't run."""

import random
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from eval.benchmarks.grader.kinds import BAIT, OPEN_ENDS
from opd.grading import equal as module
from opd.grading.equal import LONGEST, equal
from opd.grading.extract import final_answer
from opd.grading.isolated import same_mathematics

CPU_SECONDS = 2.0
"""For one text, by the clock of this process alone, so that a busy machine does not count; usual are milliseconds."""
TEXTS = 1_000
GRAMMAR = (
    *BAIT, *OPEN_ENDS, "{", "(", ")", "[", "]", "\\", "x", "7", "-1", "A", "a<b", "<=", "f(x)", "f'", "1,2", ".", ",",
    ";", ":", "=", "/", "+", "_", "__", "\t", "\u3000", "½", "°", "^{2}", "and ", "in ", "per ", "sq ", "hours",
    "p.m ", "cents", "the answer is", "Answer:", "**Answer", r"\boxed{1}", r"\[", r"\]", r"\(", r"\)", r"\frac{1}{2}",
    r"\pi", r"\dfrac12", r"\text{cm}", r"\text{", r"\le", r"\in ", r"\,", r"\!", "~", r"\quad", r"\phantom{",
    r"\binom 1", r"\sqrt(", r"\sqrt1", r"\circ", r"\hline", r"\begin{array}{c}", r"\end{array}", r"\overline{3}",
    "{,}000", " 000", "m", "km/", "\nnote", "since ", ", so ", "to answer", "answer, ", "the ", "5 million ",
    r"{\choose ", "...", "33", r"\color{", r"\underline", "20 June ", ", and ", "$1$ or ", r"\boxed{2}, ", "x=1,",
    "square ", "mph ", "at least ", "negative ", "9 cm^2 per ", "0.333", "Answer: a ", "(x,", '"', "18!",
    "therefore ", "**: ", "check", " (aaa", "= ", r"\{x|",
)  # fmt: skip
"""Pieces of answers, and of what stands around them."""


def test_fuzzed_text_is_read_in_time(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "same_mathematics", lambda found, gold: False)
    rng = random.Random(0)
    for _ in range(TEXTS):
        text = fuzzed(rng)
        with in_time(text):
            found = final_answer(text).text
            assert not any(equal(said, "x^2+7x+3") for said in (found, text[: 10 * LONGEST]))


def fuzzed(rng: random.Random) -> str:
    """One to five pieces, each repeated: a few times (a short text is read to its end), or thousands of times."""
    counts = rng.choice(((1, 2, 30), (1, 40, 4_000, 20_000)))
    repeated = "".join(piece * rng.choice(counts) for piece in rng.choices(GRAMMAR, k=rng.randint(1, 5)))
    return rng.choice(("", "1", "x ")) + repeated + rng.choice(("", "!", "1 }", "$"))


@contextmanager
def in_time(text: str) -> Iterator[None]:
    """Fail when the block takes more than CPU_SECONDS of this process."""

    def late(*_: object) -> None:
        raise AssertionError(f"more than {CPU_SECONDS} s for {len(text)} signs: {text[:40]!r}…{text[-40:]!r}")

    before = signal.signal(signal.SIGVTALRM, late)
    signal.setitimer(signal.ITIMER_VIRTUAL, CPU_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


@pytest.mark.parametrize("program", ["__import__('os').system('touch {}')", r"\write18{{touch {}}}", "open('{}', 'w')"])
def test_a_program_in_an_answer_does_not_run(program: str, tmp_path: Path):
    made = tmp_path / "made"
    assert not same_mathematics(program.format(made), "x+1")
    assert not equal(program.format(made), "x+1")
    assert not made.exists()
