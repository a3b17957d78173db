"""The learning rate of every step: by hand, and step by step beside transformers' own schedulers."""

import math

import pytest
import torch
from transformers import get_scheduler

from opd.config import Optimizer
from opd.schedules import learning_rate


def rates(steps: int, **settings) -> list[float]:
    optimizer = Optimizer(lr=0.5, **settings)
    return [learning_rate(optimizer, step, steps) for step in range(steps)]


def test_constant():
    assert rates(4, schedule="constant") == [0.5] * 4


def test_linear_falls_evenly_towards_0_after_the_last_step():
    assert rates(4, schedule="linear") == pytest.approx([0.5, 0.375, 0.25, 0.125])


def test_cosine():
    assert rates(4, schedule="cosine") == pytest.approx([0.25 * (1 + math.cos(math.pi * k / 4)) for k in range(4)])


def test_cosine_ends_at_its_floor():
    found = rates(100, schedule="cosine", min_lr_share=0.1)
    assert found[0] == 0.5 and min(found) >= 0.05 and found[-1] == pytest.approx(0.05, rel=0.01)
    assert found == sorted(found, reverse=True)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_warm_up_loses_no_step_and_reaches_the_peak(schedule):
    found = rates(20, schedule=schedule, warmup=4)
    assert found[:5] == pytest.approx([0.125, 0.25, 0.375, 0.5, 0.5])
    assert max(found) == 0.5


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("warmup", [0, 5])
def test_equals_the_schedulers_of_transformers(schedule, warmup):
    floor = 0.2 if schedule == "cosine" else 0.0
    names = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine_with_min_lr"}
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    scheduler = get_scheduler(
        names[schedule],
        optimizer,
        num_warmup_steps=warmup,
        num_training_steps=30,
        scheduler_specific_kwargs={"min_lr": floor * 0.5} if schedule == "cosine" else None,
    )
    theirs = []
    for _ in range(31):
        theirs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    expected = [theirs[step + (step < warmup)] for step in range(30)]
    assert rates(30, schedule=schedule, warmup=warmup, min_lr_share=floor) == pytest.approx(expected)


def test_a_warm_up_longer_than_the_run_still_rises():
    found = rates(3, schedule="cosine", warmup=10)
    assert found == pytest.approx([0.05, 0.1, 0.15])
