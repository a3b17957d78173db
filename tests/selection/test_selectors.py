"""One contract over the registry, and TIP's golden selections."""

import math
from itertools import product

import pytest
import torch

from opd.batch import TokenTable
from opd.head.statistics import STATISTICS
from opd.seeds import generator_for
from opd.selection import SELECTORS
from opd.selection.base import ScoreSelector, kept_count
from tests.build import draw, random_table, states, statistics, token_table
from tests.oracle import assert_close, both_precisions, cases

LENGTHS = [9, 1, 0, 20, 4]


def accepted(name: str, **fields):
    """The selector with those of the fields that it has, or None where it refuses a value."""
    cls = SELECTORS[name]
    try:
        return cls(**{key: value for key, value in fields.items() if key in cls.model_fields})
    except ValueError:
        return None


def variants():
    """Every selector of the registry in every way that it can choose."""
    ways = product(["top", "bottom", "sample"], ["rollout", "batch"], ["rollout", "batch"])
    made = [accepted(n, choose=c, per=p, scope=s, keep=0.3) for c, p, s in ways for n in SELECTORS]
    gates = [accepted(n, choose="gate", scope=s) for s in ("rollout", "batch") for n in SELECTORS]
    return list({repr(selector): selector for selector in made + gates if selector is not None}.values())


def is_local(selector) -> bool:
    """Whether each rollout decides for itself."""
    return all(getattr(selector, field, "rollout") == "rollout" for field in ("per", "scope"))


def keeps_a_share(selector) -> bool:
    return isinstance(selector, ScoreSelector) and selector.choose != "gate"


every_selector = pytest.mark.parametrize("selector", variants(), ids=repr)
every_share = pytest.mark.parametrize("selector", list(filter(keeps_a_share, variants())), ids=repr)
every_local_selector = pytest.mark.parametrize("selector", list(filter(is_local, variants())), ids=repr)


@pytest.mark.parametrize("name", SELECTORS)
def test_the_registry_name_is_the_type_that_a_recipe_writes(name):
    assert SELECTORS[name]().type == name
    assert set(SELECTORS[name].needs) <= set(STATISTICS)


@every_selector
def test_only_what_it_needs_is_read(selector):
    table = random_table(LENGTHS)
    fewer = table.with_statistics({name: table[name] for name in selector.needs})
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


@every_share
def test_keep_1_is_every_token(selector):
    whole = accepted(selector.type, **selector.model_dump() | {"keep": 1.0})
    assert (whole.weights(random_table(LENGTHS), draw) == 1).all()


@every_local_selector
def test_a_rollout_that_decides_for_itself_does_not_see_the_others(selector):
    table = random_table(LENGTHS)
    weight_C = selector.weights(table, draw)
    for some in ([3], [0, 4], [4, 1, 0]):
        rows = torch.cat([(table.rollout_C == rollout).nonzero().squeeze(-1) for rollout in some])
        assert torch.equal(selector.weights(table.rows(rows), draw), weight_C[rows])


@every_selector
def test_the_order_of_rollouts_does_not_matter(selector):
    table = random_table(LENGTHS)
    rows = torch.cat(list(reversed(table.by_rollout())))
    assert torch.equal(selector.weights(table.rows(rows), draw), selector.weights(table, draw)[rows])


@every_selector
def test_an_empty_table_has_no_weights(selector):
    for lengths in ([], [0, 0]):
        table = (
            token_table([0], {name: torch.zeros(0) for name in STATISTICS}) if not lengths else random_table(lengths)
        )
        assert selector.weights(table, draw).shape == (0,)


@every_selector
def test_a_draw_follows_its_generator_and_nothing_else(selector):
    table = random_table([40, 30])
    first, again = selector.weights(table, draw), selector.weights(table, draw)
    other = selector.weights(table, lambda rollout: generator_for("other", rollout))
    assert torch.equal(first, again)
    draws = getattr(selector, "choose", None) == "sample"
    assert torch.equal(first, other) != draws


def case_table(case, dtype: torch.dtype) -> tuple[TokenTable, torch.Tensor]:
    """The case's counted tokens as a table, and their positions in the case."""
    given = case["inputs"]
    counted = torch.tensor(given["mask"]).nonzero().squeeze(-1)
    pair = [states(torch.tensor(given[f"{who}_logits"])[counted], dtype) for who in ("student", "teacher")]
    rollout_T = torch.repeat_interleave(torch.arange(len(given["lengths"])), torch.tensor(given["lengths"]))
    lengths = torch.bincount(rollout_T[counted], minlength=len(given["lengths"])).tolist()
    return token_table(lengths, statistics(*pair)), counted


SCORES = {
    "soft_or": lambda **f: SELECTORS["soft_or"](**f),
    "soft_or_clipped": lambda **f: SELECTORS["soft_or"](clip_divergence=0.98, **f),
    "entropy": lambda scope, **f: SELECTORS["entropy"](choose="top", **f),
}


@both_precisions
@cases("tip")
def test_the_tokens_of_tip_are_chosen(case, dtype):
    table, counted = case_table(case, dtype)
    done = 0
    for expected in case["expected"]["selections"]:
        if expected["score"] in SCORES:
            selector = SCORES[expected["score"]](scope=expected["scope"], keep=expected["rho"])
            weight_C = selector.weights(table, draw)
            assert counted[weight_C > 0].tolist() == sorted(expected["indices"]), expected
            counts = torch.zeros(len(expected["counts"]), dtype=dtype).index_add(0, table.rollout_C, weight_C)
            assert counts.tolist() == expected["counts"]
            done += 1
    assert done == 16


@both_precisions
@cases("tip")
@pytest.mark.parametrize(
    ("field", "scope"),
    [("soft_or", "batch"), ("soft_or", "rollout"), ("soft_or_clipped", "batch"), ("soft_or_clipped", "rollout")],
)
def test_the_scores_of_tip_equal_the_oracle(case, dtype, field, scope):
    table, counted = case_table(case, dtype)
    expected_T = torch.tensor(case["expected"]["normalised"][scope][field], dtype=torch.float64)
    gate = SELECTORS["soft_or"](choose="gate", scope=scope, clip_divergence=0.98 if "clipped" in field else 1.0)
    assert_close(gate.weights(table, draw), expected_T[counted])


@cases("tip")
def test_the_entropy_draw_has_the_exact_inclusion_probabilities(case):
    table, _ = case_table(case, torch.float64)
    draws = 1500
    for expected in case["expected"]["entropy_sampling"]:
        one = table.rows((table.rollout_C == expected["rollout"]).nonzero().squeeze(-1))
        selector = SELECTORS["entropy"](keep=expected["rho"])
        streams = (torch.Generator().manual_seed(seed) for seed in range(draws))
        found_L = sum(selector.weights(one, lambda _, g=g: g) for g in streams) / draws
        assert math.isclose(found_L.sum(), expected["count"], rel_tol=1e-12)
        for found, p in zip(found_L.tolist(), expected["probability"], strict=True):
            assert abs(found - p) <= 4.5 * math.sqrt(p * (1 - p) / draws) + 1e-12


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
