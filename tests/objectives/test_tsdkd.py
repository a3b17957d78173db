"""TSD-KD's golden vectors: what its three terms choose and pay, each alone, together, and in a whole step."""

import pytest
import torch

from opd.selection import SELECTORS
from tests.build import GivenLogits, Models, draw, recipe, rollouts_of, statistics, taken, token_table
from tests.objectives.test_golden import each, objective_of
from tests.oracle import TOLERANCE, assert_close, both_precisions, cases, counted, pair, spread, table_of

TERMS = ("indirect", "direct", "entropy_min")


def term(case, name: str, weight: float = 1.0) -> dict:
    """One of the three terms in the case's settings."""
    given = case["inputs"]
    select, objective = {
        "indirect": (
            {"type": "opener", "entropy_share": given["opener_fraction"]},
            {"type": "plackett_luce", "k": given["k"]},
        ),
        "direct": ({"type": "soft_gate"}, {"type": "jsd", "beta": given["beta"]}),
        "entropy_min": (
            {"type": "entropy", "choose": "top", "keep": given["top_entropy_fraction"]},
            {"type": "entropy"},
        ),
    }[name]
    return {"select": select, "objective": objective, "weight": weight}


def all_terms(case) -> list[dict]:
    """The recipe; a term of weight 0 is none."""
    weights = zip(TERMS, case["inputs"]["weights"], strict=True)
    return [term(case, name, weight) for name, weight in weights if weight > 0]


def measured(case, dtype: torch.dtype):
    return table_of(case, **statistics(*pair(case, dtype)))


@both_precisions
@cases("tsdkd", "tsdkd")
def test_statistics_gate_and_jsd(case, dtype):
    table, expected = measured(case, dtype), case["expected"]
    for name in ("student_entropy", "teacher_entropy"):
        assert_close(spread(table[name], case), expected[name])
    assert_close(spread(SELECTORS["soft_gate"]().weights(table, draw), case), expected["gate"])
    jsd_C, _ = each(objective_of(f"jsd_{case['inputs']['beta']}"), table_of(case), Models(*pair(case, dtype)))
    assert_close(spread(jsd_C, case), expected["jsd"], TOLERANCE[dtype])


@both_precisions
@cases("tsdkd", "tsdkd")
@pytest.mark.parametrize(("name", "field"), [("indirect", "opener"), ("entropy_min", "entropy_top")])
def test_selections_are_exact(case, dtype, name, field):
    table, positions = measured(case, dtype), counted(case)
    chosen = recipe(term(case, name)).loss[0].select.weights(table, draw)
    assert positions[chosen > 0].tolist() == sorted(case["expected"][field])
    counts_B = torch.zeros(len(case["inputs"]["lengths"])).index_add(0, table.rollout_C, chosen.float())
    assert counts_B.tolist() == case["expected"][f"{field}_counts"]


@both_precisions
@cases("tsdkd", "tsdkd")
def test_the_entropy_term_over_the_whole_batch(case, dtype):
    batch = term(case, "entropy_min")
    batch["select"]["per"] = "batch"
    found = taken(recipe(batch), table_of(case), Models(*pair(case, dtype)))
    expected = case["expected"]["batch_scope"]
    assert counted(case)[found.plans[0].weight_C > 0].tolist() == sorted(expected["entropy_top"])
    assert_close(found.loss, expected["entropy_min"])


@both_precisions
@cases("tsdkd", "tsdkd")
def test_the_ranking_of_each_opener_token_runs_the_right_way(case, dtype):
    """A teacher of the opposite mind gives what a sum from the wrong end would."""
    rows_n = torch.tensor([counted(case).tolist().index(e["position"]) for e in case["expected"]["ranking"]])
    student, teacher = (s.rows(rows_n) for s in pair(case, dtype))
    contrary = type(teacher)(-teacher.hidden_NH, teacher.head)
    objective = recipe(term(case, "indirect")).loss[0].objective
    for mind, field in ((teacher, "loss"), (contrary, "loss_if_reversed")):
        value_n, _ = each(objective, token_table([len(rows_n)], {}), Models(student, mind))
        assert_close(value_n, [expected[field] for expected in case["expected"]["ranking"]], TOLERANCE[dtype])


@both_precisions
@cases("tsdkd", "tsdkd")
@pytest.mark.parametrize("name", TERMS)
def test_each_term_alone(case, dtype, name):
    found = taken(recipe(term(case, name)), table_of(case), Models(*pair(case, dtype)))
    assert_close(found.loss, case["expected"][name], TOLERANCE[dtype])
    assert_close(spread(found.grads["hidden"], case), case["expected"]["grad"][name])


@both_precisions
@cases("tsdkd", "tsdkd")
def test_the_three_terms_together(case, dtype):
    found = taken(recipe(*all_terms(case)), table_of(case), Models(*pair(case, dtype)))
    assert_close(found.loss, case["expected"]["total"], TOLERANCE[dtype])
    assert_close(spread(found.grads["hidden"], case), case["expected"]["grad"]["total"])


@both_precisions
@cases("tsdkd", "tsdkd")
def test_a_whole_step_pays_the_three_terms(case, dtype):
    given = case["inputs"]
    models = GivenLogits(*(torch.tensor(given[f"{who}_logits"], dtype=dtype) for who in ("student", "teacher")))
    outcome = models.step(recipe(*all_terms(case)), rollouts_of(given["lengths"], mask=given["mask"]))
    assert_close(outcome.metrics["loss"], case["expected"]["total"], TOLERANCE[dtype])
    assert_close(models.grad_TV, case["expected"]["grad"]["total"])
