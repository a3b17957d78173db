"""D³S's golden vectors: advantages, subsets, tokens, schedule, and a whole step from rewards to gradient."""

from dataclasses import replace
from fractions import Fraction

import pytest
import torch

from opd import schedules
from opd.advantages import EPSILON, group_centred, group_normalised
from opd.plan import with_ratio_advantage, with_reward_advantage
from opd.record import Ramp
from opd.selection import SELECTORS
from opd.selection.rollouts import ROLLOUT_SELECTORS
from tests.build import GivenLogits, Models, draw, recipe, rollouts_of, statistics, taken, token_table
from tests.oracle import TOLERANCE, assert_close, both_precisions, cases, counted, pair, spread, table_of

REVERSE_KL = {"type": "reverse_kl"}


def flat(groups: list[list[float]], dtype: torch.dtype = torch.float64):
    """The groups' values one after another, and each one's group."""
    values = torch.tensor([value for group in groups for value in group], dtype=dtype)
    return values, torch.repeat_interleave(torch.arange(len(groups)), torch.tensor([len(g) for g in groups]))


@both_precisions
@cases("d3s", "advantages", "step")
def test_advantages(case, dtype):
    """Another convention of the deviation changes a group's scale alone."""
    given, (reward_B, group_B) = case["inputs"], flat(case["inputs"]["rewards"], dtype)
    expected_B, _ = flat(case["expected"]["advantages"])
    found_B = group_normalised(reward_B, group_B)
    if (given["ddof"], given["eps"]) != (1, EPSILON):
        found_B, expected_B = by_size(found_B, group_B), by_size(expected_B, group_B)
    assert_close(found_B, expected_B)


def by_size(value_B, group_B):
    """Each group's values over their root mean square."""
    sizes = [value_B[group_B == g].square().mean().sqrt().clamp_min(1e-300) for g in group_B.unique()]
    return value_B / torch.stack(sizes)[group_B]


@both_precisions
@cases("d3s", "subset_within", "subset_across")
def test_the_subset_of_largest_variance(case, dtype):
    given, expected = case["inputs"], case["expected"]
    groups = given["advantages"] if case["kind"] == "subset_across" else [given["advantages"]]
    advantage_B, group_B = flat(groups, dtype)
    table = token_table([0] * len(group_B), {}, advantage_B=advantage_B, group_B=group_B)
    per = "step" if case["kind"] == "subset_across" else "prompt"
    chosen = ROLLOUT_SELECTORS["max_variance"](keep_rollouts=given["n"], per=per).choose(table, no_draw)
    assert chosen.tolist() == expected["indices"]
    assert_close(advantage_B[chosen].var(correction=0), expected["variance"])
    places = [[g, i] for g, group in enumerate(groups) for i in range(len(group))]
    assert [places[i] for i in chosen.tolist()] == expected.get("group_and_rollout", [places[i] for i in chosen])
    if len(expected["all_optimal"]) == expected["optimal_count"]:
        assert chosen.tolist() in expected["all_optimal"]


def no_draw() -> torch.Generator:
    return torch.Generator()


def table_with_advantages(case, dtype):
    advantage_B = torch.tensor(case["inputs"]["advantages"], dtype=dtype)
    return replace(table_of(case, **statistics(*pair(case, dtype))), advantage_B=advantage_B)


@both_precisions
@cases("d3s", "tokens")
def test_token_scores_and_selections(case, dtype):
    expected, table, positions = case["expected"], table_with_advantages(case, dtype), counted(case)
    assert_close(spread(table["student_entropy"], case), expected["entropy"])
    assert_close(spread(table["reverse_kl"], case), expected["divergence"])
    assert_close(spread(SELECTORS["d3s"](choose="gate").weights(table, draw), case), expected["score"])
    fields = {"product": "indices", "entropy": "indices_by_entropy", "divergence": "indices_by_divergence"}
    for token_score, field in fields.items():
        selector = SELECTORS["d3s"](token_score=token_score, keep=case["inputs"]["fraction"])
        kept = positions[selector.weights(table, draw) > 0].tolist()
        assert kept == expected[field] and len(kept) == expected["count"]


@both_precisions
@cases("d3s", "tokens")
def test_the_retained_tokens_pay_their_mean_reverse_kl(case, dtype):
    term = {"select": {"type": "d3s", "keep": case["inputs"]["fraction"]}, "objective": REVERSE_KL}
    table = replace(table_of(case), advantage_B=torch.tensor(case["inputs"]["advantages"], dtype=dtype))
    found = taken(recipe(term, advantage="reward"), table, Models(*pair(case, dtype)))
    assert_close(found.loss, case["expected"]["reverse_kl_loss"])
    assert_close(spread(found.grads["hidden"], case), case["expected"]["grad"])


@both_precisions
@cases("d3s", "teacher_advantages")
def test_the_length_mean_of_the_log_ratio_is_centred_in_each_group(case, dtype):
    expected = case["expected"]
    ids, table = torch.tensor(case["inputs"]["token_ids"])[counted(case)], table_of(case)
    group_B = torch.zeros(len(table.length_B), dtype=torch.long)
    for number, members in enumerate(case["inputs"]["groups"]):
        group_B[members] = number
    table = replace(table, group_B=group_B, statistics=statistics(*pair(case, dtype), token_id_N=ids))
    log_ratio_C = table["teacher_logprob"] - table["student_logprob"]
    assert_close(spread(log_ratio_C, case), expected["log_ratio"])
    assert_close(table.mean_by_rollout(log_ratio_C), expected["length_mean"])
    reads = recipe({"select": {"type": "d3s"}, "objective": REVERSE_KL}, advantage="log_ratio")
    assert_close(with_ratio_advantage(reads, table).advantage_B, expected["advantages"])
    assert_close(group_centred(torch.tensor(expected["length_mean"], dtype=dtype), group_B), expected["advantages"])


@cases("d3s", "schedule")
def test_the_schedule(case):
    given, points = case["inputs"], case["expected"]["points"]
    count, share = (Ramp[float](start=given["start"][k], end=given["end"][k]) for k in ("n", "fraction"))
    whole = ROLLOUT_SELECTORS["max_variance"](keep_rollouts=given["multiple"], multiple=given["multiple"])
    for point in points:
        now = whole.model_copy(update={"keep_rollouts": count.at(point["progress"])})
        assert count.at(point["progress"]) == pytest.approx(point["n"], abs=1e-12)
        assert share.at(point["progress"]) == pytest.approx(point["fraction"], abs=1e-12)
        assert now.count(given["largest"]) == point["n_rounded"]


@cases("d3s", "schedule")
def test_a_recipe_at_a_step_stands_on_the_schedule(case):
    given = case["inputs"]
    ramps = {key: {"start": given["start"][key], "end": given["end"][key]} for key in ("n", "fraction")}
    moving = recipe(
        {"select": {"type": "d3s", "keep": ramps["fraction"]}, "objective": REVERSE_KL},
        advantage="reward",
        rollout_selection={"type": "max_variance", "keep_rollouts": ramps["n"], "multiple": given["multiple"]},
    )
    for point in case["expected"]["points"]:
        progress = Fraction(point["progress"]).limit_denominator(4096)
        if 0 <= progress <= 1:
            steps = max(2, progress.denominator + 1)
            step = int(progress * (steps - 1))
            now = schedules.at(moving.model_copy(update={"steps": steps}), step)
            assert now.loss[0].select.keep == pytest.approx(point["fraction"], abs=1e-6)
            assert now.rollout_selection.count(given["largest"]) == point["n_rounded"]


def d3s_recipe(given, **more):
    return recipe(
        {"select": {"type": "d3s", "keep": given["fraction"]}, "objective": REVERSE_KL},
        advantage="reward",
        rollout_selection={"type": "max_variance", "keep_rollouts": given["n"], "per": "step"},
        **more,
    )


@both_precisions
@cases("d3s", "step")
def test_a_whole_step_from_rewards_to_gradient(case, dtype):
    given, expected = case["inputs"], case["expected"]
    reward_B, group_B = flat(given["rewards"])
    models = GivenLogits(*(torch.tensor(given[f"{who}_logits"], dtype=dtype) for who in ("student", "teacher")))
    whole = rollouts_of(given["lengths"], mask=given["mask"], groups=group_B.tolist(), rewards=reward_B.tolist())
    outcome = models.step(d3s_recipe(given), whole)
    assert [whole.index(r) for r in outcome.rollouts] == expected["rollouts"]
    assert models.rows_C[outcome.weights[0] > 0].tolist() == expected["indices"]
    assert (outcome.weights[0] > 0).sum() == expected["count"]
    assert_close(outcome.metrics["loss"], expected["reverse_kl_loss"], TOLERANCE[dtype])
    assert_close(models.grad_TV, expected["grad"])


@both_precisions
@cases("d3s", "step")
def test_the_parts_of_a_whole_step(case, dtype):
    given, expected = case["inputs"], case["expected"]
    reward_B, group_B = flat(given["rewards"], dtype)
    table = table_of(case, **statistics(*pair(case, dtype)))
    table = with_reward_advantage(d3s_recipe(given), replace(table, reward_B=reward_B, group_B=group_B))
    assert_close(table.advantage_B, flat(expected["advantages"])[0])
    chosen = d3s_recipe(given).rollout_selection.choose(table, no_draw)
    assert chosen.tolist() == expected["rollouts"]
    assert_close(table.advantage_B[chosen].var(correction=0), expected["variance"])
    score_C = SELECTORS["d3s"](choose="gate").weights(table, draw)
    kept_C = torch.isin(table.rollout_C, chosen)
    assert_close(spread(torch.where(kept_C, score_C, 0), case), expected["score"])


@pytest.mark.parametrize("per", ["step", "prompt"])
def test_all_rollouts_and_all_tokens_are_the_baseline_bit_for_bit(per):
    generator = torch.Generator().manual_seed(0)
    logits = [3 * torch.randn(40, 9, generator=generator) for _ in range(2)]
    whole = rollouts_of([9, 1, 0, 12, 7, 11], groups=[0, 0, 0, 1, 1, 1], rewards=[1, 0, 0, 0, 1, 0])
    everything = {"type": "max_variance", "keep_rollouts": 6, "per": per}
    d3s = recipe(
        {"select": {"type": "d3s", "keep": 1.0}, "objective": REVERSE_KL},
        advantage="reward",
        rollout_selection=everything,
    )
    ours, baseline = GivenLogits(*logits), GivenLogits(*logits)
    losses = [
        ours.step(d3s, whole).metrics["loss"],
        baseline.step(recipe({"objective": REVERSE_KL}), whole).metrics["loss"],
    ]
    assert losses[0] == losses[1]
    assert torch.equal(ours.grad_TV, baseline.grad_TV) and ours.grad_TV.any()


def test_fixed_halves_are_not_the_widest():
    advantage_B = torch.tensor([-0.5] * 6 + [3, 0.2])
    table = token_table([0] * 8, {}, advantage_B=advantage_B, group_B=torch.zeros(8, dtype=torch.long))
    chosen = ROLLOUT_SELECTORS["max_variance"](keep_rollouts=4).choose(table, no_draw)
    assert_close(advantage_B[chosen].double().var(correction=0), 2.296875, 1e-7)
    assert_close(torch.tensor([3, 0.2, -0.5, -0.5]).double().var(correction=0), 2.0825, 1e-7)
