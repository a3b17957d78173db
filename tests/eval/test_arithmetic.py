"""The toy task: worked answers are right, a forgotten carry is the only mistake, and no held-out sum is trained on."""

import random
import re
from itertools import islice

import pytest

from eval.tasks.arithmetic import (
    EOS,
    LONGEST_ANSWER,
    MAX_PROBLEMS,
    VOCABULARY,
    draws,
    load,
    problems,
    question,
    split_of,
    worked,
)
from opd.errors import DataError
from opd.rewards import grade

PAIRS = [*islice(draws("train", seed=3), 500), (0, 0), (999, 999), (1, 999), (95, 7), (5, 5)]


def test_known_answers():
    assert worked(345, 678) == "5+8=13,4+7+1=12,3+6+1=10,1:1023"
    assert worked(12, 3) == "2+3=5,1+0=1:15"
    assert worked(0, 0) == "0+0=0:0"
    assert worked(345, 678, forget=1.0) == "5+8=13,4+7=11,3+6=9:913"


def test_a_worked_answer_is_right():
    for a, b in PAIRS:
        text = worked(a, b)
        assert grade(text, str(a + b)) == 1.0
        assert all(eval(left) == int(right) for left, right in re.findall(r"([\d+]+)=(\d+)", text))


def test_forgetting_all_carries_adds_each_column_alone():
    for a, b in PAIRS:
        columns = [(a // 10**k + b // 10**k % 10) % 10 for k in range(max(len(str(a)), len(str(b))))]
        expected = "".join(str((a // 10**k % 10 + b // 10**k % 10) % 10) for k in reversed(range(len(columns))))
        assert worked(a, b, forget=1.0).endswith(f":{expected}")


def test_a_carry_is_forgotten_as_often_as_asked():
    rng = random.Random(0)
    forgotten = sum(worked(5, 5, forget=0.3, rng=rng) == "5+5=10:0" for _ in range(2000))
    assert forgotten / 2000 == pytest.approx(0.3, abs=0.04)
    assert worked(2, 3, forget=1.0) == worked(2, 3), "no carry is due, so none is forgotten"


def test_the_splits_are_disjoint_whatever_the_seed():
    train = {tuple(sorted(p)) for seed in range(3) for p in islice(draws("train", seed), 5000)}
    test = {tuple(sorted(p)) for seed in range(3) for p in islice(draws("test", seed), 2000)}
    assert not train & test and len(test) > 500
    assert all(split_of(a, b) == split_of(b, a) for a, b in train | test)


def test_about_one_pair_in_ten_is_held_out():
    rng = random.Random(0)
    held = sum(split_of(rng.randrange(1000), rng.randrange(1000)) == "test" for _ in range(5000))
    assert held / 5000 == pytest.approx(0.1, abs=0.02)


def test_problems_are_distinct_and_the_same_each_time():
    rows = problems("test", 400, seed=0)
    assert rows == problems("test", 400, seed=0) == load(400)
    assert rows != problems("test", 400, seed=1)
    assert rows[:50] == problems("test", 50, seed=0), "the first n of one order"
    assert len({row["question"] for row in rows}) == 400
    for row in rows:
        a, b = map(int, row["question"].rstrip("=").split("+"))
        assert row["answer"] == str(a + b) and split_of(a, b) == "test"


def test_every_text_fits_vocabulary_and_length():
    for a, b in [*PAIRS, (999, 999)]:
        assert set(question(a, b) + worked(a, b)) <= set(VOCABULARY)
        assert len(worked(a, b)) + len([EOS]) <= LONGEST_ANSWER


def test_more_problems_than_there_are_is_refused():
    with pytest.raises(DataError, match="ask for fewer"):
        load(MAX_PROBLEMS + 1)
    with pytest.raises(ValueError, match="Ask for fewer"):
        problems("train", MAX_PROBLEMS + 1, seed=0)
