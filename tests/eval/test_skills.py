"""The comparison's task: worked chains are right, a forgotten borrow is the only mistake, the splits are disjoint."""

import random
from itertools import islice

import pytest

from eval.tasks.skills import (
    EOS,
    LONGEST_ANSWER,
    MAX_PROBLEMS,
    SKILLS,
    VOCABULARY,
    draws,
    lessons,
    load,
    problems,
    question,
    result,
    split_of,
    worked,
)
from opd.errors import DataError
from opd.rewards import grade

CHAINS = list(islice(draws("train", seed=3), 1000))
HAS_BORROW = [chain for chain in CHAINS if worked(chain, forget=1.0) != worked(chain)]


@pytest.mark.parametrize(
    ("chain", "text"),
    [
        (("8352", "+1279"), "2+9=11,5+7+1=13,3+2+1=6,8+1=9:9631"),
        (("8352", "-1234"), "2-4=8,5-3-1=1,3-2=1,8-1=7:7118"),
        (("1238", "*7"), "8*7=56,3*7+5=26,2*7+2=16,1*7+1=8:8666"),
        (("8352", "r"), "2,25,253,2538:2538"),
        (("8355", "s"), "3<855,5<85,5<8:3558"),
        (("8352", "r", "s"), "2,25,253,2538:2538;2<538,3<58,5<8:2358"),
    ],
)
def test_known_answers(chain, text):
    assert worked(chain) == text and text.endswith(f":{result(chain)}")


def test_a_worked_answer_is_right():
    for chain in CHAINS:
        assert grade(worked(chain), result(chain)) == 1.0
        for chunk in worked(chain).replace(";", ",").replace(":", ",").split(","):
            if "=" in chunk:
                left, right = chunk.split("=")
                assert eval(left) % 10 == int(right) % 10, chunk


def test_plain_arithmetic_agrees_with_the_work_on_every_skill():
    assert {operation[0] for chain in CHAINS for operation in chain[1:]} == set(SKILLS)
    assert all(1000 <= int(result(chain)) <= 9999 for chain in CHAINS)


def test_a_forgotten_borrow_is_the_only_mistake_and_a_wrong_answer():
    assert 0.2 < len(HAS_BORROW) / len(CHAINS) < 0.4
    for chain in HAS_BORROW:
        assert any(operation[0] == "-" for operation in chain[1:])
        first, wrong = worked(chain), worked(chain, forget=1.0)
        at = next(i for i, (a, b) in enumerate(zip(first, wrong, strict=False)) if a != b)
        assert (first[at : at + 2], wrong[at]) == ("-1", "="), "they part where a borrow is due"
    assert sum(grade(worked(c, forget=1.0), result(c)) for c in HAS_BORROW) / len(HAS_BORROW) < 0.05


def test_a_borrow_is_forgotten_as_often_as_asked():
    rng = random.Random(0)
    forgotten = sum("3-1=" not in worked(("8352", "-1234"), forget=0.3, rng=rng) for _ in range(2000))
    assert forgotten / 2000 == pytest.approx(0.3, abs=0.04)


def test_the_splits_are_disjoint_whatever_the_seed():
    train = {chain for seed in range(3) for chain in islice(draws("train", seed), 3000)}
    train |= {(q,) for q, _ in islice(lessons(0.5, seed=4), 1000)}
    test = {chain for seed in range(3) for chain in islice(draws("test", seed), 500)}
    assert not train & test and not {(question(c),) for c in test} & train
    assert len(test) > 1000 and all(split_of(chain) == "test" for chain in test)


def test_problems_are_distinct_and_the_same_each_time():
    rows = problems("test", 400, seed=0)
    assert rows == problems("test", 400, seed=0) == load(400)
    assert rows != problems("test", 400, seed=1)
    assert rows[:50] == problems("test", 50, seed=0), "the first n of one order"
    assert len({row["question"] for row in rows}) == 400
    assert not {row["question"] for row in rows} & {row["question"] for row in problems("train", 4000, seed=0)}


def test_every_text_fits_vocabulary_and_length():
    for chain in [*CHAINS, ("9999", "*9", "*9"), ("9999", "-1000", "*9")]:
        for forget in (0.0, 1.0):
            text = worked(chain, forget=forget)
            assert set(question(chain) + text) <= set(VOCABULARY)
            assert len(text) + len([EOS]) <= LONGEST_ANSWER or chain not in CHAINS


def test_more_problems_than_there_are_is_refused():
    with pytest.raises(DataError, match="ask for fewer"):
        load(MAX_PROBLEMS + 1)
    with pytest.raises(ValueError, match="Ask for fewer"):
        problems("train", MAX_PROBLEMS + 1, seed=0)
