"""One contract over the registry of token selectors, and what is each one's own."""

import math
from dataclasses import replace
from itertools import product
from typing import Literal, get_args, get_origin

import pytest
import torch

from opd.batch import TokenTable
from opd.head.statistics import STATISTICS
from opd.seeds import generator_for
from opd.selection import SELECTORS
from opd.selection.base import ScoreSelector, kept_count
from tests.build import Models, draw, random_states, random_table, recipe, states, statistics, taken, token_table
from tests.oracle import assert_close

LENGTHS = [9, 1, 0, 20, 4]
WHOLE = {"keep": 1.0, "entropy_share": 1.0, "tokens": 10**6}
"""The settings that keep every token, where a selector has them."""


def accepted(name: str, **fields):
    """The selector with those of the fields that it has, or None where it refuses a value."""
    cls = SELECTORS[name]
    try:
        return cls(**{key: value for key, value in fields.items() if key in cls.model_fields})
    except ValueError:
        return None


def own_choices(cls) -> list[dict]:
    """Its defaults, and each choice of the fields that it alone has."""
    shared = {"type", *ScoreSelector.model_fields, "scope"}
    fields = [(name, f.annotation) for name, f in cls.model_fields.items() if name not in shared]
    choices = [{name: choice} for name, kind in fields if get_origin(kind) is Literal for choice in get_args(kind)]
    return [{}, {"tokens": 5}, {"beta": 0.3}, *choices]


def variants():
    """Every selector of the registry in every way that it can choose."""
    ways = list(product(["top", "bottom", "sample"], ["rollout", "batch"], ["rollout", "batch"]))
    made = []
    for name, cls in SELECTORS.items():
        for own in own_choices(cls):
            made += [accepted(name, choose=c, per=p, scope=s, keep=0.3, **own) for c, p, s in ways]
            made += [accepted(name, choose="gate", scope=s, **own) for s in ("rollout", "batch")]
    return list({repr(selector): selector for selector in made if selector is not None}.values())


def is_local(selector) -> bool:
    """Whether each rollout decides for itself."""
    return all(getattr(selector, field, "rollout") == "rollout" for field in ("per", "scope"))


def keeps_a_share(selector) -> bool:
    return isinstance(selector, ScoreSelector) and selector.choose != "gate"


def draws(selector) -> bool:
    return isinstance(selector, ScoreSelector) and selector.choose != "gate" and selector.ranks_at_random()


every_selector = pytest.mark.parametrize("selector", variants(), ids=repr)
every_share = pytest.mark.parametrize("selector", list(filter(keeps_a_share, variants())), ids=repr)
every_local_selector = pytest.mark.parametrize("selector", list(filter(is_local, variants())), ids=repr)


@pytest.mark.parametrize("name", SELECTORS)
def test_the_registry_name_is_the_type_that_a_recipe_writes(name):
    assert SELECTORS[name]().type == name and SELECTORS[name].__doc__


@every_selector
def test_it_names_what_it_needs_and_reads_no_more(selector):
    assert set(selector.needs) <= {*STATISTICS, "advantage", "reward"}
    table = random_table(LENGTHS)
    fewer = table.with_statistics({name: table[name] for name in selector.needs if name in STATISTICS})
    columns = {name: getattr(table, f"{name}_B") for name in ("reward", "advantage") if name not in selector.needs}
    fewer = replace(fewer, **{f"{name}_B": torch.full_like(c, torch.nan) for name, c in columns.items()})
    assert torch.equal(selector.weights(fewer, draw), selector.weights(table, draw))


@every_selector
def test_weights_are_finite_not_negative_and_without_gradient(selector):
    weight_C = selector.weights(random_table(LENGTHS), draw)
    assert weight_C.shape == (sum(LENGTHS),) and weight_C.isfinite().all() and (weight_C >= 0).all()
    assert not weight_C.requires_grad


@every_share
def test_counts_are_the_kept_share_of_whoever_competes(selector):
    weight_C, table = selector.weights(random_table(LENGTHS), draw), random_table(LENGTHS)
    assert set(weight_C.tolist()) <= {0.0, 1.0}
    if selector.per == "batch":
        assert weight_C.sum() == kept_count(sum(LENGTHS), selector.keep)
    else:
        found = torch.zeros(len(LENGTHS), dtype=weight_C.dtype).index_add(0, table.rollout_C, weight_C)
        assert found.tolist() == [kept_count(n, selector.keep) for n in LENGTHS]


@every_selector
def test_a_count_known_before_is_the_count_after(selector):
    before = selector.count_before(LENGTHS)
    assert before is None or before == int((selector.weights(random_table(LENGTHS), draw) > 0).sum())
    assert before is None or is_local(selector)


@every_local_selector
def test_a_rollout_that_decides_for_itself_does_not_see_the_others(selector):
    table = random_table(LENGTHS)
    weight_C = selector.weights(table, draw)
    for some in ([3], [0, 4], [4, 1, 0]):
        rows = torch.cat([(table.rollout_C == rollout).nonzero().squeeze(-1) for rollout in some])
        assert_close(selector.weights(table.rows(rows), draw), weight_C[rows], 1e-15)


@every_selector
def test_the_order_of_rollouts_does_not_matter(selector):
    table = random_table(LENGTHS)
    rows = torch.cat(list(reversed(table.by_rollout())))
    assert_close(selector.weights(table.rows(rows), draw), selector.weights(table, draw)[rows], 1e-15)


@every_selector
def test_an_empty_table_has_no_weights(selector):
    for lengths in ([], [0, 0]):
        assert selector.weights(random_table(lengths), draw).shape == (0,)


@every_selector
def test_a_draw_follows_its_generator_and_nothing_else(selector):
    table = random_table([40, 30])
    first, again = selector.weights(table, draw), selector.weights(table, draw)
    other = selector.weights(table, lambda rollout: generator_for("other", rollout))
    assert torch.equal(first, again)
    assert torch.equal(first, other) != draws(selector)


@every_selector
def test_what_is_not_a_number_shows_in_the_weights(selector):
    table = random_table(LENGTHS)
    for name in set(selector.needs) & set(STATISTICS):
        column_C = table[name].clone()
        column_C[12] = torch.nan
        assert selector.weights(table.with_statistics(table.statistics | {name: column_C}), draw).isnan().any(), name


def whole(selector):
    """The selector at a share of everything, or None where it has none."""
    share = {name: value for name, value in WHOLE.items() if name in type(selector).model_fields}
    return accepted(selector.type, **selector.model_dump() | share) if share else None


@every_selector
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])
def test_a_share_of_everything_is_all_tokens(selector, dtype):
    everything, table = whole(selector), random_table(LENGTHS)
    if everything is not None and getattr(selector, "choose", None) != "gate":
        columns = {name: column.to(dtype) for name, column in table.statistics.items()}
        assert (everything.weights(table.with_statistics(columns), draw) == 1).all()


@pytest.mark.parametrize("name", SELECTORS)
def test_a_share_of_everything_is_the_baseline_bit_for_bit(name):
    everything = accepted(name, **WHOLE, choose="top") or accepted(name, **WHOLE)
    student, teacher = random_states(11, 4, 7, seed=1), random_states(11, 5, 7, seed=2)
    table = token_table([6, 0, 5], {})
    term = {"objective": {"type": "reverse_kl"}}
    baseline = taken(recipe(term), table, Models(student, teacher))
    advantage = "reward" if "advantage" in everything.needs else None
    found = taken(recipe(term | {"select": everything}, advantage=advantage), table, Models(student, teacher))
    assert torch.equal(found.loss, baseline.loss)
    assert all(torch.equal(found.grads[part], grad) for part, grad in baseline.grads.items())


@every_selector
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])
def test_extreme_logits_give_finite_weights(selector, dtype):
    logits_NV = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 0.0, 1e4], [0.0, 0.0, 0.0], [-1e4, -1e4, 1e4]], dtype=dtype)
    rows = statistics(states(logits_NV, dtype), states(logits_NV.flip(1), dtype), token_id_N=torch.tensor([1, 0, 2, 2]))
    weight_C = selector.weights(token_table([3, 1], rows), draw)
    assert weight_C.isfinite().all() and (weight_C >= 0).all() and weight_C.any()


def test_a_random_share_is_uniform():
    table, draws = random_table([8]), 1500
    streams = (torch.Generator().manual_seed(seed) for seed in range(draws))
    found_L = sum(SELECTORS["random"](keep=0.25).weights(table, lambda _, g=g: g) for g in streams) / draws
    assert (found_L - 0.25).abs().max() < 4.5 * math.sqrt(0.25 * 0.75 / draws)


@pytest.mark.parametrize("seed", range(20))
def test_the_least_sure_and_the_most_disagreeing_token_tie_at_exactly_1(seed):
    """Where a + b − ab would leave the order to rounding."""
    table = random_table([50], seed)
    columns = {name: table[name].float() for name in ("student_entropy", "reverse_kl")}
    weight_C = SELECTORS["soft_or"](choose="gate", clip=1.0).weights(table.with_statistics(columns), draw)
    assert all(weight_C[column.argmax()] == 1 for column in columns.values()) and weight_C.max() == 1


def hand_table(lengths: list[int], **columns: list[float]) -> TokenTable:
    return token_table(lengths, {name: torch.tensor(c, dtype=torch.float64) for name, c in columns.items()})


def test_the_first_tokens_of_each_rollout():
    assert SELECTORS["first_n"](tokens=2).weights(random_table([3, 1, 0, 2]), draw).tolist() == [1, 1, 0, 1, 1, 1]


@pytest.mark.parametrize(
    ("entropies", "share", "kept"),
    [
        ([1, 1, 1, 1, 1, 1, 1, 1, 1, 1], 0.1, 1),
        ([1, 1, 1, 1, 1, 1, 1, 1, 1, 1], 0.11, 2),
        ([0, 0, 9, 1], 0.1, 3),
        ([0, 0, 0], 0.5, 1),
        ([5], 0.1, 1),
        ([1, 2, 3], 1.0, 3),
    ],
)
def test_the_opener_ends_with_the_token_that_crosses_its_share(entropies, share, kept):
    table = hand_table([len(entropies)], student_entropy=entropies)
    weight_C = SELECTORS["opener"](entropy_share=share).weights(table, draw)
    assert weight_C.tolist() == [1.0] * kept + [0.0] * (len(entropies) - kept)


def test_each_rollout_has_its_own_opener():
    table = hand_table([3, 0, 2], student_entropy=[8, 1, 1, 1, 1])
    assert SELECTORS["opener"](entropy_share=0.6).weights(table, draw).tolist() == [1, 0, 0, 1, 1]


@pytest.mark.parametrize(("beta", "score"), [(0.0, 2.302585), (1.0, 0.72), (0.5, (2.302585093 * 0.72) ** 0.5)])
def test_dial_scores_the_published_example(beta, score):
    table = hand_table([1], student_logprob=[math.log(0.08)], teacher_logprob=[math.log(0.8)])
    found = SELECTORS["dial"](beta=beta, choose="gate").weights(table, draw)
    assert_close(found, [score], 1e-6)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_dial_has_a_score_for_what_the_teacher_rules_out(beta):
    """Also where the student's own probability has no digit left, or is 0 too."""
    logprobs = {"student_logprob": [-1.0, -1e3, -math.inf, -1.0], "teacher_logprob": [-math.inf] * 3 + [-1.1]}
    score_C = SELECTORS["dial"](beta=beta).score(hand_table([4], **logprobs))
    assert not score_C.isnan().any() and score_C.argmax() == 0


def test_the_least_likely_tokens_surprise_most():
    table = hand_table([5], student_logprob=[-1.0, -3.0, -0.1, -2.0, -9.0])
    assert SELECTORS["surprisal"](keep=0.4).weights(table, draw).tolist() == [0, 1, 0, 0, 1]


@pytest.mark.parametrize("tau", [0.5, 1.0, 4.0])
def test_the_soft_gate_is_one_half_where_both_are_as_sure(tau):
    table = hand_table([3], student_entropy=[1, 1 + tau, 1 - tau], teacher_entropy=[1, 1, 1])
    weight_C = SELECTORS["soft_gate"](tau=tau).weights(table, draw)
    assert_close(weight_C, [0.5, 1 / (1 + math.exp(-1)), 1 / (1 + math.e)])


def test_d3s_with_the_advantage_and_soft_or_weighs_one_by_the_other():
    table = random_table(LENGTHS)
    gates = [SELECTORS[n](choose="gate", **f) for n, f in (("d3s", {"token_score": "soft_or"}), ("soft_or", {}))]
    d3s_C, soft_or_C = (gate.weights(table, draw) for gate in gates)
    assert_close(d3s_C, soft_or_C * table.advantage_B.abs()[table.rollout_C])


def test_in_one_rollout_the_size_of_its_advantage_is_irrelevant():
    table = random_table(LENGTHS)
    d3s, entropy = SELECTORS["d3s"](per="rollout"), SELECTORS["entropy"](choose="top")
    no_zero = table.advantage_B[table.rollout_C] != 0
    assert torch.equal(d3s.weights(table, draw)[no_zero], entropy.weights(table, draw)[no_zero])
