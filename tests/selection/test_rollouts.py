"""One contract over the registry of rollout selectors, and what each is for."""

from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError

from opd.batch import TokenTable
from opd.seeds import generator_for
from opd.selection.rollouts import ROLLOUT_SELECTORS
from opd.selection.rollouts.base import CountingSelector
from opd.selection.rollouts.max_variance import widest_subset
from tests.build import token_table

GROUPS = [0, 0, 0, 0, 1, 1, 1, 2]
COUNTING = [name for name, cls in ROLLOUT_SELECTORS.items() if issubclass(cls, CountingSelector)]


def step_table(seed: int = 0) -> TokenTable:
    """Eight rollouts of three prompts, one of them empty; advantages and log-probs all different."""
    generator = torch.Generator().manual_seed(seed)
    lengths = [3, 1, 0, 5, 2, 4, 6, 1]
    return token_table(
        lengths,
        {},
        advantage_B=torch.randn(8, generator=generator, dtype=torch.float64),
        reward_B=torch.rand(8, generator=generator, dtype=torch.float64),
        sampler_logprob_C=-torch.rand(sum(lengths), generator=generator),
        group_B=torch.tensor(GROUPS),
    )


def draw() -> torch.Generator:
    return generator_for("test")


def variants():
    counts = [{"keep_rollouts": n, "per": per} for n in (1, 3) for per in ("prompt", "step")]
    return [
        cls(**fields) for name, cls in ROLLOUT_SELECTORS.items() for fields in (counts if name in COUNTING else [{}])
    ]


every_selector = pytest.mark.parametrize("selector", variants(), ids=repr)
every_counting = pytest.mark.parametrize("selector", [s for s in variants() if s.type in COUNTING], ids=repr)


@pytest.mark.parametrize("name", ROLLOUT_SELECTORS)
def test_the_registry_name_is_the_type_that_a_recipe_writes(name):
    assert ROLLOUT_SELECTORS[name].model_fields["type"].default == name
    assert ROLLOUT_SELECTORS[name].__doc__ and set(ROLLOUT_SELECTORS[name].needs) <= {"reward", "advantage"}


@every_selector
def test_the_choice_is_ascending_without_repeats_and_keyed_by_its_generator_alone(selector):
    chosen = selector.choose(step_table(), draw).tolist()
    assert chosen == sorted(set(chosen)) and set(chosen) <= set(range(8)) and chosen
    assert selector.choose(step_table(), draw).tolist() == chosen


@every_selector
def test_only_what_it_needs_is_read(selector):
    table = step_table()
    columns = {f"{name}_B": getattr(table, f"{name}_B") for name in ("reward", "advantage")}
    hidden = {k: torch.full_like(c, torch.nan) for k, c in columns.items() if k[:-2] not in selector.needs}
    assert torch.equal(selector.choose(replace(table, **hidden), draw), selector.choose(table, draw))


@every_selector
def test_a_step_of_no_rollouts_is_chosen_whole(selector):
    none = torch.zeros(0, dtype=torch.float64)
    table = token_table([], {}, reward_B=none, advantage_B=none)
    assert selector.choose(table, draw).tolist() == []


@every_counting
def test_each_group_or_the_step_keeps_its_count(selector):
    chosen = selector.choose(step_table(), draw)
    if selector.per == "step":
        assert len(chosen) == selector.keep_rollouts
    else:
        found = torch.bincount(torch.tensor(GROUPS)[chosen], minlength=3).tolist()
        assert found == [min(selector.keep_rollouts, GROUPS.count(g)) for g in range(3)]


@pytest.mark.parametrize("name", COUNTING)
@pytest.mark.parametrize("per", ["prompt", "step"])
@pytest.mark.parametrize("count", [8, 100])
def test_as_many_as_there_are_is_every_rollout(name, per, count):
    chosen = ROLLOUT_SELECTORS[name](keep_rollouts=count, per=per).choose(step_table(), draw)
    assert chosen.tolist() == list(range(8))


@pytest.mark.parametrize("name", COUNTING)
def test_a_count_that_ranks_cannot_share_is_refused(name):
    with pytest.raises(ValidationError, match="multiple"):
        ROLLOUT_SELECTORS[name](keep_rollouts=6, multiple=4)


@pytest.mark.parametrize(("value", "multiple", "count"), [(5.0, 2, 6), (4.9, 2, 4), (1.0, 4, 4), (30.0, 4, 16)])
def test_a_moving_count_is_rounded_half_up_to_what_ranks_can_share(value, multiple, count):
    selector = ROLLOUT_SELECTORS["random"](keep_rollouts=multiple, multiple=multiple)
    assert selector.model_copy(update={"keep_rollouts": value}).count(16) == count


def test_random_rollouts_are_uniform_and_follow_their_generator():
    selector, draws = ROLLOUT_SELECTORS["random"](keep_rollouts=2, per="step"), 1500
    found_B = torch.zeros(8)
    for seed in range(draws):
        found_B[selector.choose(step_table(), lambda seed=seed: torch.Generator().manual_seed(seed))] += 1
    assert (found_B / draws - 0.25).abs().max() < 4.5 * (0.25 * 0.75 / draws) ** 0.5


def test_the_unlikely_rollouts_are_dropped_by_their_mean_a_token_and_first_those_without_one():
    table = replace(step_table(), sampler_logprob_C=torch.tensor([-1.0] * 3 + [-9.0] + [-1.0] * 5 + [-2.0] * 13))
    assert ROLLOUT_SELECTORS["drop_unlikely"](share=0.125).choose(table, draw).tolist() == [0, 1, 3, 4, 5, 6, 7]
    assert ROLLOUT_SELECTORS["drop_unlikely"](share=0.25).choose(table, draw).tolist() == [0, 3, 4, 5, 6, 7]
    assert ROLLOUT_SELECTORS["drop_unlikely"](share=0.375).choose(table, draw).tolist() == [0, 3, 4, 5, 6]
    assert ROLLOUT_SELECTORS["drop_unlikely"](share=0.1).choose(table, draw).tolist() == list(range(8))


@pytest.mark.parametrize("seed", range(30))
def test_the_widest_subset_is_that_of_brute_force(seed):
    generator = torch.Generator().manual_seed(seed)
    size = int(torch.randint(1, 9, (), generator=generator))
    value_G = torch.randint(-3, 4, (size,), generator=generator).double() / 2
    for count in range(1, size + 1):
        widest = max(torch.combinations(value_G, count).var(-1, correction=0).tolist()) if count > 1 else 0.0
        found = widest_subset(value_G, count)
        assert len(set(found.tolist())) == count
        assert value_G[found].var(correction=0) == pytest.approx(widest, abs=1e-12)
