"""TIP's golden vectors: statistics, scaled scores, selections, quadrants, losses."""

import math

import pytest
import torch

from opd.metrics import quadrants
from opd.selection import SELECTORS
from opd.selection.scaling import clip_at_quantile, min_max, scaled_entropy
from tests.build import GivenLogits, Models, draw, recipe, rollouts_of, statistics, taken
from tests.oracle import assert_close, both_precisions, cases, counted, pair, spread, table_of

SCORES = {
    "soft_or": ("soft_or", {}),
    "soft_or_clipped": ("soft_or", {"clip_divergence": 0.98}),
    "q3": ("q3", {}),
    "entropy": ("entropy", {"choose": "top"}),
    "divergence": ("divergence", {}),
}
both_scopes = pytest.mark.parametrize("scope", ["batch", "rollout"])


def selector(score: str, scope: str | None, **fields):
    """The selector of one of the oracle's scores."""
    name, more = SCORES[score]
    return SELECTORS[name](**more | ({} if scope is None else {"scope": scope}) | fields)


def measured(case, dtype: torch.dtype):
    return table_of(case, **statistics(*pair(case, dtype)))


def scopes(table, scope: str):
    """The rows that are scaled together."""
    return table.by_rollout() if scope == "rollout" else [torch.arange(len(table))]


@both_precisions
@cases("tip")
def test_statistics(case, dtype):
    table, expected = measured(case, dtype), case["expected"]
    vocabulary = len(case["inputs"]["student_logits"][0])
    assert_close(spread(table["student_entropy"], case), expected["entropy"])
    assert_close(spread(table["student_entropy"] / math.log(vocabulary), case), expected["h"])
    assert_close(spread(table["reverse_kl"], case), expected["delta"])
    assert_close(spread(table["forward_kl"], case), expected["forward_kl"])


@both_precisions
@cases("tip")
@both_scopes
@pytest.mark.parametrize(
    ("field", "column", "scaled"),
    [
        ("h_hat", "student_entropy", scaled_entropy),
        ("delta_hat", "reverse_kl", min_max),
        ("delta_hat_clipped", "reverse_kl", lambda d_C: min_max(clip_at_quantile(d_C, 0.98))),
    ],
)
def test_scaled_statistics(case, dtype, scope, field, column, scaled):
    table = measured(case, dtype)
    found_C = torch.zeros(len(table), dtype=dtype)
    for rows in scopes(table, scope):
        found_C[rows] = scaled(table[column][rows])
    assert_close(spread(found_C, case), case["expected"]["normalised"][scope][field])


@both_precisions
@cases("tip")
@both_scopes
def test_caps_are_the_98th_percentiles(case, dtype, scope):
    table = measured(case, dtype)
    caps = [cap for cap in case["expected"]["normalised"][scope]["caps"] if cap is not None]
    for rows, cap in zip(scopes(table, scope), caps, strict=True):
        vocabulary = len(case["inputs"]["student_logits"][0])
        h_C = table["student_entropy"][rows] / math.log(vocabulary)
        for column_C, name in ((h_C, "h"), (table["reverse_kl"][rows], "delta")):
            assert_close(clip_at_quantile(column_C, 0.98).max(), cap[name])


@both_precisions
@cases("tip")
@both_scopes
@pytest.mark.parametrize("score", ["soft_or", "soft_or_clipped", "q3"])
def test_scores(case, dtype, scope, score):
    weight_C = selector(score, scope, choose="gate").weights(measured(case, dtype), draw)
    assert_close(spread(weight_C, case), case["expected"]["normalised"][scope][score])


@both_precisions
@cases("tip")
@pytest.mark.parametrize("score", SCORES)
def test_selections_are_exact(case, dtype, score):
    table, positions = measured(case, dtype), counted(case)
    for expected in case["expected"]["selections"]:
        if expected["score"] == score:
            chosen = selector(score, expected["scope"], keep=expected["rho"])
            weight_C = chosen.weights(table, draw)
            counts_B = torch.zeros(len(expected["counts"])).index_add(0, table.rollout_C, weight_C.float())
            assert positions[weight_C > 0].tolist() == sorted(expected["indices"]), expected
            assert counts_B.tolist() == expected["counts"]


@cases("tip")
def test_every_score_of_the_oracle_is_known(case):
    assert {expected["score"] for expected in case["expected"]["selections"]} <= SCORES.keys()


@both_precisions
@cases("tip")
def test_the_retained_tokens_pay_their_mean_reverse_kl(case, dtype):
    for expected in case["expected"]["loss_soft_or_batch"]:
        term = {"select": {"type": "soft_or", "keep": expected["rho"]}, "objective": {"type": "reverse_kl"}}
        found = taken(recipe(term), table_of(case), Models(*pair(case, dtype)))
        assert found.plans[0].count == expected["retained"]
        assert_close(found.loss, expected["value"])
        assert_close(spread(found.grads["hidden"], case), expected["grad"])


@both_precisions
@cases("tip")
def test_a_whole_step_pays_the_same(case, dtype):
    given = case["inputs"]
    for expected in case["expected"]["loss_soft_or_batch"][:2]:
        term = {"select": {"type": "soft_or", "keep": expected["rho"]}, "objective": {"type": "reverse_kl"}}
        models = GivenLogits(*(torch.tensor(given[f"{who}_logits"], dtype=dtype) for who in ("student", "teacher")))
        outcome = models.step(recipe(term), rollouts_of(given["lengths"], mask=given["mask"]))
        assert_close(outcome.metrics["loss"], expected["value"], 1e-5 if dtype == torch.float32 else 1e-9)
        assert_close(models.grad_TV, expected["grad"])


@cases("tip")
def test_quadrants_at_fixed_cuts(case):
    table, expected = measured(case, torch.float64), case["expected"]["quadrants_at_cuts"]
    h_C, d_C = scaled_entropy(table["student_entropy"]), min_max(table["reverse_kl"])
    check_quadrants(case, h_C, d_C, (expected["h_hat_cut"], expected["delta_hat_cut"]), expected)


@cases("tip")
def test_quadrants_at_the_medians(case):
    table, expected = measured(case, torch.float64), case["expected"]["quadrants_at_medians"]
    h_C = table["student_entropy"] / math.log(len(case["inputs"]["student_logits"][0]))
    cuts = tuple(float(column_C.quantile(0.5)) for column_C in (h_C, table["reverse_kl"]))
    assert cuts == pytest.approx((expected["h_cut"], expected["delta_cut"]), abs=1e-12)
    check_quadrants(case, h_C, table["reverse_kl"], cuts, expected)


def check_quadrants(case, h_C, d_C, cuts, expected):
    """Shares of all counted tokens, and each one's label."""
    assert quadrants(h_C, d_C, cuts=cuts) == pytest.approx(expected["shares"], abs=1e-12)
    for position, h, d in zip(counted(case).tolist(), h_C.split(1), d_C.split(1), strict=True):
        assert quadrants(h, d, cuts=cuts)[f"Q{expected['label'][position]}"] == 1
    assert sum(label > 0 for label in expected["label"]) == len(h_C)


@cases("tip")
def test_the_entropy_draw_has_the_exact_inclusion_probabilities(case):
    table, draws = measured(case, torch.float64), 600
    for expected in case["expected"]["entropy_sampling"]:
        one = table.rows((table.rollout_C == expected["rollout"]).nonzero().squeeze(-1))
        chosen = SELECTORS["entropy"](keep=expected["rho"])
        streams = (torch.Generator().manual_seed(seed) for seed in range(draws))
        found_L = sum(chosen.weights(one, lambda _, g=g: g) for g in streams) / draws
        assert math.isclose(found_L.sum(), expected["count"], rel_tol=1e-12)
        probable = [p for p in expected["probability"] if p > 0]
        for found, p in zip(found_L.tolist(), probable, strict=True):
            assert abs(found - p) <= 4.5 * math.sqrt(p * (1 - p) / draws) + 1e-12
