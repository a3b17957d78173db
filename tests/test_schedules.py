"""Everything that moves with progress: the learning rate beside transformers' own schedulers, and every ramp."""

import math

import pytest
import torch
from pydantic import ValidationError
from transformers import get_scheduler

from opd import schedules
from opd.config import OptimizerSettings
from opd.errors import RecipeError
from opd.objectives import OBJECTIVES
from opd.record import Ramp, as_number
from opd.schedules import learning_rate
from opd.selection import SELECTORS
from opd.selection.rollouts import ROLLOUT_SELECTORS
from tests.build import draw, random_table, recipe

REVERSE_KL = {"type": "reverse_kl"}


def rates(steps: int, **settings) -> list[float]:
    optimizer = OptimizerSettings(lr=0.5, **settings)
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


@pytest.mark.parametrize("shape", ["linear", "cosine"])
def test_a_ramp_leaves_from_its_start_and_arrives_at_its_end(shape):
    ramp = Ramp[float](shape=shape, start=0.2, end=0.8)
    assert [ramp.at(p) for p in (-1.0, 0.0, 0.5, 1.0, 2.0)] == pytest.approx([0.2, 0.2, 0.5, 0.8, 0.8])
    found = [ramp.at(p / 10) for p in range(11)]
    assert found == sorted(found)


def test_a_cosine_leaves_and_arrives_slowly():
    ramp = Ramp[float](shape="cosine", start=0.0, end=1.0)
    assert ramp.at(0.25) == pytest.approx((1 - math.sqrt(0.5)) / 2)
    assert ramp.at(0.25) + ramp.at(0.75) == pytest.approx(1.0)


def moving_recipe(steps: int = 5):
    """A recipe in which a temperature, a weight, a share, an objective's setting and a number of rollouts move."""
    return recipe(
        {
            "select": {"type": "d3s", "keep": {"start": 0.2, "end": 1.0}},
            "objective": {"type": "jsd", "beta": {"start": 0.9, "end": 0.1, "shape": "cosine"}},
            "weight": {"start": 2.0, "end": 1.0},
        },
        {"objective": REVERSE_KL},
        loss_temperature={"start": 2.0, "end": 1.0},
        advantage="reward",
        rollout_selection={"type": "max_variance", "keep_rollouts": {"start": 2, "end": 6}},
        optimizer={"lr": 0.4, "schedule": "linear"},
        steps=steps,
    )


def test_a_recipe_at_a_step_holds_numbers_alone():
    now = schedules.at(moving_recipe(), 2)
    first = now.loss[0]
    found = (first.select.keep, first.objective.beta, first.weight, now.loss_temperature)
    assert found == pytest.approx((0.6, 0.5, 1.5, 1.5))
    assert now.rollout_selection.count(100) == 4
    assert now.optimizer.lr == pytest.approx(0.24)


def test_the_first_step_stands_at_the_start_and_the_last_at_the_end():
    first, last = (schedules.at(moving_recipe(), step) for step in (0, 4))
    assert (first.loss[0].select.keep, last.loss[0].select.keep) == (0.2, 1.0)
    assert (first.rollout_selection.keep_rollouts, last.rollout_selection.keep_rollouts) == (2, 6)
    assert schedules.at(moving_recipe(steps=1), 0).loss[0].select.keep == 0.2


def test_what_does_not_move_stays_the_very_object():
    before = moving_recipe()
    now = schedules.at(before, 3)
    assert now.loss[1] is before.loss[1] and now.rollout is before.rollout and now.prompts is before.prompts
    assert before.loss[0].select.keep == Ramp[float](start=0.2, end=1.0)


def test_moving_values_are_reported_by_their_keys():
    before = moving_recipe()
    found = schedules.moving(before, schedules.at(before, 0))
    assert found == {
        "loss.0.select.keep": 0.2,
        "loss.0.objective.beta": 0.9,
        "loss.0.weight": 2.0,
        "loss_temperature": 2.0,
        "rollout_selection.keep_rollouts": 2.0,
    }
    assert schedules.moving(recipe(), schedules.at(recipe(), 0)) == {}


def ramped() -> list[tuple[str, type, str]]:
    """Every setting of the three registries that takes a ramp: registry, record, field."""
    registries = {"select": SELECTORS, "objective": OBJECTIVES, "rollout_selection": ROLLOUT_SELECTORS}
    return [
        (section, cls, field)
        for section, registry in registries.items()
        for cls in registry.values()
        for field in cls.model_fields
        if takes_a_ramp(cls, field)
    ]


def takes_a_ramp(cls: type, field: str) -> bool:
    try:
        return isinstance(getattr(cls(**ends(cls, field)), field), Ramp)
    except ValidationError:
        return False


def ends(cls: type, field: str) -> dict:
    """The field from its default (or 4) to half of it."""
    default = cls.model_fields[field].default
    start = default if isinstance(default, float) else 4
    return {field: {"start": start, "end": start / 2 if isinstance(default, float) else 2}}


every_ramp = pytest.mark.parametrize(("section", "cls", "field"), ramped(), ids=lambda x: getattr(x, "__name__", x))


def test_shares_and_counts_can_move():
    fields = {(cls, field) for _, cls, field in ramped()}
    assert {(SELECTORS["soft_or"], "keep"), (ROLLOUT_SELECTORS["max_variance"], "keep_rollouts")} <= fields


@every_ramp
def test_every_ramp_is_resolved_in_a_recipe(section, cls, field):
    ramp = ends(cls, field)
    part = {"type": cls.model_fields["type"].default, **ramp}
    term = {"objective": REVERSE_KL} | ({section: part} if section != "rollout_selection" else {})
    needs = getattr(cls(**ramp), "needs", ())
    more = {"rollout_selection": part} if section == "rollout_selection" else {}
    moving = recipe(term, steps=3, advantage="reward" if "advantage" in needs else None, **more)
    for step, share in ((0, 0.0), (1, 0.5), (2, 1.0)):
        now = schedules.at(moving, step)
        found = getattr(
            now.rollout_selection if section == "rollout_selection" else getattr(now.loss[0], section), field
        )
        start, end = ramp[field]["start"], ramp[field]["end"]
        assert found == pytest.approx((1 - share) * start + share * end)


@pytest.mark.parametrize("name", [n for n, cls in SELECTORS.items() if "keep" in cls.model_fields])
def test_a_selector_at_a_step_chooses_as_with_the_number(name):
    ranks = {"choose": "top"} if SELECTORS[name].model_fields["choose"].default == "gate" else {}
    moving, fixed = SELECTORS[name](keep={"start": 0.2, "end": 0.6}, **ranks), SELECTORS[name](keep=0.4, **ranks)
    advantage = "reward" if "advantage" in fixed.needs else None
    now = schedules.at(recipe({"select": moving, "objective": REVERSE_KL}, steps=3, advantage=advantage), 1)
    table = random_table([9, 1, 20])
    assert torch.equal(now.loss[0].select.weights(table, draw), fixed.weights(table, draw))
    with pytest.raises(TypeError, match=r"schedules\.at"):
        moving.weights(table, draw)


def test_a_ramp_is_no_number_before_it_is_resolved():
    assert as_number(3) == 3 and as_number(0.5) == 0.5
    with pytest.raises(TypeError, match=r"schedules\.at"):
        as_number(Ramp[float](start=0.1, end=0.2))


@pytest.mark.parametrize("ramp", [{"start": 0.5}, {"start": 0.0, "end": 1.0}, {"start": 0.5, "end": 1.5}])
def test_both_ends_of_a_ramp_must_be_valid(ramp):
    with pytest.raises(RecipeError):
        recipe({"select": {"type": "soft_or", "keep": ramp}, "objective": REVERSE_KL})
