"""Algebra that hangs, crashes or eats memory ends its own process, and the next question is answered."""

import os
import resource
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from opd.grading import isolated
from opd.grading.extract import Final
from opd.grading.isolated import Undecided, Worker, close_workers, same_mathematics
from opd.grading.worker import CPU_SECONDS, LAST_CPU_SECONDS
from opd.rewards import Verdict, judge, judge_all

HOSTILE = [
    r"2^{10^{9}}", r"(((x+1)^{999}+1)^{999})", r"\int_0^{\infty} e^{-x^{x}} dx", r"((x+y+z)^{99})^{99}",
    r"\binom{99999999}{4999999}", "(" * 3_000 + "1" + ")" * 3_000, r"\sqrt{" * 190 + "2" + "}" * 190, "x^" * 190 + "2",
]  # fmt: skip
"""Each takes longer than anyone waits, or more memory or stack than there is."""


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: text[:20])
def test_hostile_algebra_is_wrong_and_the_next_question_is_answered(text: str):
    with suppress(Undecided):
        assert not same_mathematics(text, "x+1")
    assert same_mathematics("x+1", "1+x")


@pytest.mark.parametrize("text", [r"(((x+1)^{999}+1)^{999})", r"2^{10^{9}}"])
def test_hostile_algebra_costs_few_seconds_of_the_processor(text: str):
    """In Python's code and in what Python can't interrupt."""
    usual, hostile = (_processor_seconds(question) for question in ("x+2", text))
    assert hostile < usual + LAST_CPU_SECONDS + 2


def _processor_seconds(question: str) -> float:
    """Of a worker that is started, asked, and ended."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    worker = Worker()
    worker.ask("x+1", "1+x")
    worker.ask(question, "x+1")
    worker.close()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_a_worker_that_dies_is_no_answer():
    worker = Worker()
    assert worker.ask("x+1", "1+x") is True
    os.kill(worker._process.pid, signal.SIGKILL)
    assert worker.ask("x+2", "2+x") is None


def test_a_worker_that_is_silent_is_killed(monkeypatch: pytest.MonkeyPatch):
    worker = Worker()
    assert worker.ask("x+1", "1+x") is True
    monkeypatch.setattr(isolated, "SECONDS", 0.2)
    os.kill(worker._process.pid, signal.SIGSTOP)
    assert worker.ask("x+2", "2+x") is None
    assert worker._process.returncode == -signal.SIGKILL


def test_what_takes_too_long_is_undecided_and_asked_again():
    text = r"(((x+1)^{999}+1)^{999})"
    verdict = judge(rf"\boxed{{{text}}}", "x+1")
    assert (verdict.strict, verdict.flexible, verdict.undecided) == (False, False, True)
    before = same_mathematics.cache_info().misses
    with pytest.raises(Undecided):
        same_mathematics(text, "x+1")
    assert same_mathematics.cache_info().misses == before + 1
    assert judge(r"\boxed{1+x}", "x+1") == Verdict(True, True, Final("1+x", "boxed"))


def test_a_question_is_timed_by_the_processor_not_by_the_clock():
    worker = Worker()
    assert worker.ask("x+1", "1+x") is True
    os.kill(worker._process.pid, signal.SIGSTOP)
    threading.Timer(2 * CPU_SECONDS, os.kill, (worker._process.pid, signal.SIGCONT)).start()
    assert worker.ask("(x+3)^2", "x^2+6x+9") is True
    worker.close()


def test_closed_workers_are_replaced():
    assert same_mathematics("x+5", "5+x")
    close_workers()
    assert same_mathematics("x+6", "6+x")


def test_many_threads_get_their_own_answers():
    pairs = [(f"x+{i}", f"{i + i % 2}+x") for i in range(40)]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(lambda pair: same_mathematics(*pair), pairs)) == [i % 2 == 0 for i in range(40)]


def test_verdicts_come_in_order():
    pairs = [(rf"\boxed{{{i}y}}", rf"y \cdot {i + i % 3}") for i in range(12)]
    assert [v.flexible for v in judge_all(pairs)] == [i % 3 == 0 for i in range(12)]
