"""What a step decides before any gradient: counts, weights, slopes, and which rows pay."""

from dataclasses import replace

import pytest
import torch

from opd.head.pay import ChosenPay, DensePay, RowsPay, retained_rows
from opd.head.settings import HeadSettings
from opd.objectives import OBJECTIVES
from opd.objectives.base import DenseObjective
from opd.plan import (
    TermPlan,
    chooses_late,
    chosen_loss,
    chosen_rollouts,
    counts_before,
    pays,
    plan,
    with_ratio_advantage,
)
from opd.selection import SELECTORS
from opd.step import needed_statistics
from tests.build import Models, gradient, measured, random_states, random_table, recipe, taken, token_table
from tests.oracle import assert_close

KL = {"objective": {"type": "reverse_kl"}}
CPU = torch.device("cpu")
LENGTHS = [4, 0, 3, 6]


def dense(select: dict, **more) -> dict:
    return KL | {"select": select} | more


LATE = {
    "advantage": "log_ratio",
    "rollout_selection": {"type": "max_variance", "keep_rollouts": 2, "per": "step"},
}


@pytest.mark.parametrize(
    ("select", "count"),
    [
        ({"type": "all"}, 13),
        ({"type": "first_n", "tokens": 3}, 9),
        ({"type": "random", "keep": 0.5}, 6),
        ({"type": "divergence", "keep": 0.5}, 6),
        ({"type": "soft_or", "keep": 0.5, "scope": "rollout"}, 6),
        ({"type": "soft_or", "keep": 0.5}, None),
        ({"type": "divergence", "keep": 0.5, "per": "batch"}, None),
        ({"type": "opener"}, None),
        ({"type": "soft_gate"}, None),
    ],
    ids=str,
)
def test_a_count_that_lengths_alone_decide_is_known_before(select, count):
    counts = counts_before(recipe(dense(select)), LENGTHS)
    assert counts == (None if count is None else [count])
    if count is not None:
        assert plan(recipe(dense(select)), random_table(LENGTHS), 0)[0].count == count


def test_counts_are_known_only_if_all_are():
    known, unknown = dense({"type": "all"}), dense({"type": "soft_or"})
    assert counts_before(recipe(known, known), LENGTHS) == [13, 13]
    assert counts_before(recipe(known, unknown), LENGTHS) is None


@pytest.mark.parametrize("name", OBJECTIVES)
def test_only_dense_objectives_need_no_table(name):
    advantage = "reward" if "advantage" in OBJECTIVES[name]().needs else None
    counts = counts_before(recipe({"objective": {"type": name}}, advantage=advantage), LENGTHS)
    assert (counts is not None) == issubclass(OBJECTIVES[name], DenseObjective)


def test_an_advantage_from_the_teacher_is_never_known_before():
    assert counts_before(recipe(KL, **LATE), LENGTHS) is None


def test_a_rollout_without_a_token_has_no_part_in_an_advantage_from_the_teacher():
    reads = recipe(dense({"type": "d3s"}), **LATE)
    columns = {"student_logprob": torch.zeros(6), "teacher_logprob": torch.full((6,), -0.3)}
    table = token_table([2, 2, 2, 0], columns)
    assert with_ratio_advantage(reads, table).advantage_B.tolist() == [0, 0, 0, 0]


def test_draws_are_keyed_by_step_and_selector():
    half, other = (dense({"type": "random", "keep": keep}) for keep in (0.5, 0.51))
    chosen, table = recipe(half, other, half), random_table([40, 30])
    first, again, later = (plan(chosen, table, index) for index in (0, 0, 1))
    assert all(torch.equal(a.weight_C, b.weight_C) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0].weight_C > 0, later[0].weight_C > 0)
    overlap = int(((first[0].weight_C > 0) & (first[1].weight_C > 0)).sum())
    assert overlap < first[0].count  # drawn apart: one does not hold the other


def test_terms_of_one_random_selection_train_the_same_tokens():
    half = {"type": "random", "keep": 0.5}
    reverse, forward = ({"select": half, "objective": {"type": name}} for name in ("reverse_kl", "forward_kl"))
    chosen, table = recipe(KL, reverse, forward), random_table([40, 30])
    _, one, other = plan(chosen, table, 0)
    assert torch.equal(one.weight_C, other.weight_C)
    assert one.count == 35


def kept(terms, plans, rows_c: torch.Tensor) -> list[int]:
    """Which of those rows of the table pay."""
    return retained_rows(pays(terms, plans, rows_c, CPU), len(rows_c), CPU).tolist()


def test_a_row_is_kept_if_some_term_pays_there():
    one = TermPlan(torch.tensor([1.0, 0.0, 0.0, torch.nan, 0.0]), 1)
    other = TermPlan(torch.tensor([0.0, 0.0, 0.5, 0.0, 0.0]), 1)
    terms = recipe(dense({"type": "all"}), dense({"type": "all"})).loss
    assert kept(terms, [one, other], torch.arange(5)) == [0, 2, 3]
    assert kept(terms, [one, other], torch.tensor([4, 3, 1, 2])) == [1, 3]
    assert kept([], [], torch.arange(5)) == []


def test_a_chosen_term_keeps_rows_with_a_slope():
    table = with_all(random_table(LENGTHS))
    chosen = recipe({"objective": {"type": "tgdpo"}})
    plans = plan(chosen, replace(table, reward_B=torch.tensor([0.0, 0, 0.5, 1])), 0)
    assert plans[0].weight_C.all()
    paying = torch.isin(table.rollout_C, torch.tensor([0, 3])).nonzero().squeeze(-1)
    assert kept(chosen.loss, plans, torch.arange(len(table))) == paying.tolist()


def with_all(table):
    return table.with_statistics(table.statistics | {"reference_logprob": table["teacher_logprob"] - 0.3})


def test_a_term_pays_its_weight_over_its_own_global_count():
    chosen = recipe(dense({"type": "all"}, weight=2.0), dense({"type": "first_n", "tokens": 1}, weight=0.5))
    paid = pays(chosen.loss, plan(chosen, random_table(LENGTHS), 0), torch.arange(4, 7), CPU)
    assert_close(paid[0].weight_N, [2 / 13] * 3, 1e-15)
    assert_close(paid[1].weight_N, [0.5 / 3, 0, 0], 1e-15)


def test_each_kind_of_objective_pays_in_its_own_way():
    chosen = recipe(KL, {"objective": {"type": "sampled_reverse_kl"}, "weight": 3.0}, {"objective": {"type": "uskd"}})
    plans = plan(chosen, random_table(LENGTHS), 0)
    paid = pays(chosen.loss, plans, torch.arange(13), CPU)
    assert [type(pay) for pay in paid] == [DensePay, ChosenPay, RowsPay]
    assert_close(paid[1].slope_NK, 3 * plans[1].chosen.slope_CK, 1e-15)
    assert torch.equal(paid[2].constant_N, plans[2].constant_C)


def test_the_loss_of_chosen_terms_is_weighted_and_of_no_others():
    terms = [{"objective": {"type": "constant_penalty", "penalty": 1.0}, "weight": w} for w in (0.5, 2.0)]
    chosen, table = recipe(KL, *terms), random_table(LENGTHS)
    plans = plan(chosen, table, 0)
    assert chosen_loss(chosen.loss, plans) == pytest.approx(2.5 * float(table["student_logprob"].mean()))
    assert chosen_loss(chosen.loss[:1], plans[:1]) == 0


def models() -> Models:
    return Models(random_states(13, 4, 7, seed=1), random_states(13, 5, 7, seed=2))


def test_the_gradient_of_micro_batches_adds_up_to_that_of_the_step():
    terms = (
        dense({"type": "soft_or", "keep": 0.4}),
        {"objective": {"type": "plackett_luce", "k": 3}, "select": {"type": "opener", "entropy_share": 0.5}},
        {"objective": {"type": "sampled_reverse_kl"}, "weight": 0.3},
    )
    chosen, table = recipe(*terms), token_table(LENGTHS, {}, token_id_C=torch.arange(13) % 7)
    whole = taken(chosen, table, models())
    parts = [
        torch.tensor([0, 5, 6, 12]),
        torch.tensor([], dtype=torch.long),
        torch.tensor([1, 2, 3, 4, 7, 8, 9, 10, 11]),
    ]
    loss, hidden = 0.0, torch.zeros_like(whole.grads["hidden"])
    for rows_c in parts:
        rows_c = rows_c[kept(chosen.loss, whole.plans, rows_c)]
        few = Models(models().student.rows(rows_c), models().teacher.rows(rows_c))
        paid = pays(chosen.loss, whole.plans, rows_c, CPU)
        value, grads = gradient(few, paid, table.token_id_C[rows_c], HeadSettings(candidates=3))
        loss, hidden[rows_c] = loss + value, grads["hidden"]
    assert_close(loss + chosen_loss(chosen.loss, whole.plans), whole.loss, 1e-12)
    assert_close(hidden, whole.grads["hidden"], 1e-12)


@pytest.mark.parametrize("advantage", ["reward", "log_ratio"])
@pytest.mark.parametrize("selector", ["max_variance", "random"])
def test_rollouts_are_chosen_late_only_where_the_teacher_must_speak_first(advantage, selector):
    """At random too: a mean over those that train alone would leave a prompt's only one without an advantage."""
    chosen = recipe(
        dense({"type": "d3s"}), advantage=advantage, rollout_selection={"type": selector, "keep_rollouts": 2}
    )
    assert chooses_late(chosen) == (advantage == "log_ratio")
    assert not chooses_late(recipe(dense({"type": "d3s"}), advantage=advantage))


def late(*terms: dict):
    """A recipe that chooses two rollouts once the teacher has scored them, its table, and the two."""
    chosen = recipe(*terms, **LATE)
    whole = token_table(LENGTHS, {}, token_id_C=torch.arange(13) % 7)
    table = with_ratio_advantage(chosen, measured(chosen, whole, models(), HeadSettings(candidates=3)))
    return chosen, table, chosen_rollouts(chosen, table, 0)


@pytest.mark.parametrize("objective", ["reverse_kl", "sampled_reverse_kl", "uskd"])
def test_where_rollouts_can_not_be_chosen_the_step_is_lost(objective):
    """Of one whose advantage is not a number, though it is not among those that stay."""
    chosen, table, stay = late({"objective": {"type": objective}})
    gone = next(i for i in range(len(LENGTHS)) if i not in stay.tolist() and LENGTHS[i])
    nan_B = table.advantage_B.index_fill(0, torch.tensor([gone]), torch.nan)
    (paid,) = pays(chosen.loss, plan(chosen, replace(table, advantage_B=nan_B), 0), torch.arange(len(table)), CPU)
    columns = [getattr(paid, name) for name in ("slope_NK", "weight_N") if hasattr(paid, name)]
    assert any(column.isnan().any() for column in columns)


TERMS = [
    KL,
    dense({"type": "soft_or", "keep": 0.5}),
    dense({"type": "random", "keep": 0.5}),
    {"objective": {"type": "plackett_luce", "k": 3}},
    {"objective": {"type": "uskd"}},
]


@pytest.mark.parametrize("term", TERMS, ids=str)
def test_a_late_choice_of_rollouts_spreads_the_plan_of_those_that_stay(term):
    chosen, table, stay = late(term)
    early = chosen.model_copy(update={"rollout_selection": recipe().rollout_selection})
    rows_c = torch.isin(table.rollout_C, stay).nonzero().squeeze(-1)
    (spread,), (alone,) = plan(chosen, table, 0), plan(early, table.rows(rows_c), 0)
    assert len(stay) == 2 and 0 < len(rows_c) < len(table)
    assert spread.count == alone.count and torch.equal(spread.weight_C[rows_c], alone.weight_C)
    assert spread.weight_C.count_nonzero() == alone.weight_C.count_nonzero()
    rows_alone = rows_c[kept(chosen.loss, [alone], torch.arange(len(rows_c)))].tolist()
    assert kept(chosen.loss, [spread], torch.arange(len(table))) == rows_alone
    for name in ("token_id_CK", "slope_CK"):
        if alone.chosen is not None:
            assert torch.equal(getattr(spread.chosen, name)[rows_c], getattr(alone.chosen, name))
    if alone.chosen is not None:
        assert spread.chosen.value == alone.chosen.value
        assert spread.chosen.slope_CK.count_nonzero() == alone.chosen.slope_CK.count_nonzero()
    if alone.constant_C is not None:
        assert torch.equal(spread.constant_C[rows_c], alone.constant_C)


def test_a_late_choice_pays_what_an_early_one_of_the_same_rollouts_would():
    chosen, table, stay = late(*TERMS[:2])
    rows_c = torch.isin(table.rollout_C, stay).nonzero().squeeze(-1)
    everyone = chosen.model_copy(update={"rollout_selection": recipe().rollout_selection})
    whole = taken(chosen, table, models())
    few = Models(models().student.rows(rows_c), models().teacher.rows(rows_c))
    alone = taken(everyone, table.rows(rows_c), few)
    assert_close(whole.loss, alone.loss, 1e-13)
    assert_close(whole.grads["hidden"][rows_c], alone.grads["hidden"], 1e-13)


@pytest.mark.parametrize("name", SELECTORS)
def test_a_step_measures_what_its_selectors_need(name):
    select = {"type": name}
    advantage = "reward" if "advantage" in SELECTORS[name]().needs else None
    chosen = recipe(dense(select), advantage=advantage, metrics={"full_every": 4})
    asked = set(SELECTORS[name]().needs) - {"advantage", "reward"}
    watched = {"student_stop_mass", "teacher_stop_mass", "trainer_logprob", "reverse_kl"}  # the objective's own sums
    assert asked <= needed_statistics(chosen, 2) <= asked | (watched if asked else set())
