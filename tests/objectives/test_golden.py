"""The golden vectors of every objective, through plan and head: losses, gradients, and what stands between."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from opd.head.outcomes import TeacherTop
from opd.head.settings import HeadSettings
from opd.head.tile import Tile, TopScores
from opd.head.weights import HiddenStates
from opd.metrics import token_metrics
from opd.objectives import OBJECTIVES
from opd.objectives.base import Objective
from opd.objectives.tgdpo import TGDPO
from opd.objectives.uskd import soft_labels
from opd.record import Record
from tests.build import Models, paying, recipe, states, statistics, taken, token_table
from tests.oracle import (
    TOLERANCE,
    assert_close,
    both_precisions,
    cases,
    counted,
    logits,
    oracle,
    pair,
    spread,
    table_of,
)

TAIL_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-2}
"""The teacher's tail is 1 − Σ listed, which loses digits where it is small."""


def each(objective: Objective, table, models: Models, **more) -> tuple[Tensor, Tensor]:
    """Every token's own loss, and the gradient with respect to its own logits."""
    recipe = paying(objective, **more)
    table, found = taken(recipe, with_ones(table), models).table, []
    for row, one in enumerate(torch.eye(len(table), dtype=torch.float64)):
        result = taken(recipe, table.with_statistics(table.statistics | {"weight": one}), models)
        found.append((result.loss, result.grads["hidden"][row]))
    return tuple(torch.stack(list(column)) for column in zip(*found, strict=True))


def with_ones(table):
    """The table with weight 1 for every token."""
    return table.with_statistics(table.statistics | {"weight": torch.ones(len(table), dtype=torch.float64)})


def objective_of(field: str, **more) -> Objective:
    """The objective that a field of the oracle names: forward_kl, jsd_0.9, student_entropy."""
    if field == "student_entropy":
        return OBJECTIVES["entropy"]()
    name, _, beta = field.partition("_") if field.startswith("jsd_") else (field, "", "")
    return OBJECTIVES[name](**({"beta": float(beta)} if beta else {}), **more)


def fields_with_gradients(name: str) -> list[str]:
    """The expected losses of a file, whichever its cases have."""
    return sorted(
        {k for case in oracle(name) for k, v in case["expected"].items() if isinstance(v, dict) and "grad" in v}
    )


@both_precisions
@cases("divergences")
@pytest.mark.parametrize("field", fields_with_gradients("divergences"))
def test_divergences_and_entropy(case, dtype, field):
    table, models = table_of(case), Models(*pair(case, dtype))
    value_N, grad_NV = each(objective_of(field), table, models, loss_temperature=case["inputs"]["temperature"])
    assert_close(value_N, case["expected"][field]["loss"])
    assert_close(grad_NV, case["expected"][field]["grad"])


@cases("divergences")
@pytest.mark.parametrize("beta", [0, 1])
def test_the_ends_of_jsd_are_the_two_kls(case, beta):
    table, models = table_of(case, weight=torch.ones(len(counted(case)))), Models(*pair(case, torch.float64))
    end, named = OBJECTIVES["jsd"](beta=beta), OBJECTIVES[case["expected"][f"jsd_{beta}"]["equals"]]()
    ours, theirs = (taken(paying(objective), table, models) for objective in (end, named))
    assert torch.equal(ours.loss, theirs.loss) and torch.equal(ours.grads["hidden"], theirs.grads["hidden"])


@cases("divergences")
def test_jsd_over_beta_times_one_minus_beta_tends_to_the_two_kls(case):
    table, models = table_of(case), Models(*pair(case, torch.float64))
    for point in case["expected"]["jsd_over_beta_times_one_minus_beta"]:
        beta = point["beta"]
        value_N, _ = each(OBJECTIVES["jsd"](beta=beta), table, models, loss_temperature=case["inputs"]["temperature"])
        assert_close(value_N / (beta * (1 - beta)), point["value"], 1e-9 + 1e-16 / min(beta, 1 - beta))


@both_precisions
@cases("topk_tail")
@pytest.mark.parametrize("field", fields_with_gradients("topk_tail"))
def test_a_list_and_its_tail(case, dtype, field):
    student, teacher = logits(case, "student", dtype), top_scores(case, dtype)
    objective = objective_of(field, teacher_top=teacher.id_NK.shape[1])
    value_N, grad_NV = each(objective, table_of(case), Models(student, teacher))
    tolerance = TAIL_TOLERANCE[dtype]
    assert_close(value_N, case["expected"][field]["loss"], tolerance)
    assert_close(grad_NV, case["expected"][field]["grad"], tolerance)


def top_scores(case, dtype: torch.dtype) -> TopScores:
    """The case's lists; a shorter one ends with −1 and −inf."""
    ids, log_probs = (case["inputs"][f"teacher_topk_{x}"] for x in ("ids", "logprobs"))
    longest = max(map(len, ids))
    return TopScores(
        torch.tensor([row + [-1] * (longest - len(row)) for row in ids]),
        torch.tensor([row + [-torch.inf] * (longest - len(row)) for row in log_probs], dtype=dtype),
    )


@both_precisions
@cases("topk_tail")
def test_both_tails(case, dtype):
    student, teacher = logits(case, "student", dtype), top_scores(case, dtype)
    rows_n = torch.arange(len(student))
    tile = Tile(rows_n, student, teacher, torch.zeros_like(rows_n), HeadSettings())
    ours_nO, theirs_nO, _ = TeacherTop(teacher.id_NK.shape[1])(tile)
    tolerance = TAIL_TOLERANCE[dtype]
    assert_close(ours_nO[:, -1].exp(), case["expected"]["student_tail"], tolerance)
    assert_close(theirs_nO[:, -1].exp(), case["expected"]["teacher_tail"], tolerance)


@cases("topk_tail")
@pytest.mark.parametrize("field", ["forward_kl", "reverse_kl"])
def test_a_bucketed_divergence_lies_between_0_and_the_full_one(case, field):
    if f"full_{field}" in case["expected"]:
        full_N = statistics(*pair(case, torch.float64))[field]
        assert_close(full_N, case["expected"][f"full_{field}"])
        models, teacher = Models(*pair(case, torch.float64)), top_scores(case, torch.float64)
        listed_N, _ = each(objective_of(field, teacher_top=1), table_of(case), replace(models, teacher=teacher))
        for k in (1, 4, len(case["inputs"]["student_logits"][0])):
            value_N, _ = each(objective_of(field, teacher_top=k), table_of(case), models)
            assert (value_N >= -1e-12).all() and (value_N <= full_N + 1e-12).all()
        assert_close(value_N, full_N)
        assert (listed_N <= full_N + 1e-6).all()


@both_precisions
@cases("sampled_token")
def test_sampled_reverse_kl(case, dtype):
    expected, table, models = case["expected"], table_of(case), Models(*pair(case, dtype))
    term = {"objective": {"type": "sampled_reverse_kl"}}
    found = taken(recipe(term), table, models)
    assert_close(found.loss, expected["mean_loss"], TOLERANCE[dtype])
    assert_close(spread(found.grads["hidden"], case), expected["grad"])
    value_C, _ = each(OBJECTIVES["sampled_reverse_kl"](), table, models)
    assert_close(spread(value_C, case), expected["loss"], TOLERANCE[dtype])
    own, theirs = (found.table[f"{who}_logprob"] for who in ("student", "teacher"))
    assert_close(spread(theirs - own, case), expected["advantage"])
    assert_close(spread(own - theirs, case), expected["k1"])


@both_precisions
@cases("sampled_token")
def test_the_reported_estimate_of_the_reverse_kl_is_no_surrogate(case, dtype):
    ids_C = table_of(case).token_id_C
    table = table_of(case, **statistics(*pair(case, dtype), token_id_N=ids_C))
    reported = token_metrics(table, [], cuts=(0.5, 0.5))["sampled_reverse_kl"]
    assert_close(reported, case["expected"]["mean_k1"], TOLERANCE[dtype])


@both_precisions
@cases("sampled_token")
def test_the_expected_gradient_of_a_sampled_token(case, dtype):
    table, (student, teacher) = table_of(case), pair(case, dtype)
    expected_CV = torch.zeros_like(student.hidden_NH)
    for token in range(student.head.vocabulary):
        sampled = replace(table, token_id_C=torch.full_like(table.token_id_C, token))
        found = taken(recipe({"objective": {"type": "sampled_reverse_kl"}}), sampled, Models(student, teacher))
        p_C1 = found.table["student_logprob"].exp()[:, None]
        expected_CV += p_C1 * found.grads["hidden"] * len(table)
    assert_close(spread(expected_CV, case), case["expected"]["expected_grad_per_token"])


@both_precisions
@cases("tsdkd", "plackett_luce")
def test_plackett_luce(case, dtype):
    ranked = case["inputs"]["ranked"]
    teacher_V = -torch.tensor(ranked, dtype=dtype).argsort().to(dtype)  # the best has the highest
    models = Models(logits_of_one(case["inputs"]["student_logits"], dtype), logits_of_one(teacher_V, dtype))
    found = taken(recipe({"objective": {"type": "plackett_luce", "k": len(ranked)}}), token_table([1], {}), models)
    assert_close(found.loss, case["expected"]["loss"], TOLERANCE[dtype])
    assert_close(found.grads["hidden"][0], case["expected"]["grad"])


def logits_of_one(logits_V, dtype: torch.dtype) -> HiddenStates:
    return states(torch.as_tensor(logits_V, dtype=dtype)[None], dtype)


def nkd_objectives(case) -> tuple[Objective, Objective]:
    """The two parts of NKD in the case's settings."""
    given = case["inputs"]
    target = "teacher" if given["target_kind"] == "teacher_argmax" else "sampled"
    rest = OBJECTIVES["nkd_non_target"](target=target, gamma=given["gamma"], temperature=given["lambda"])
    return OBJECTIVES["nkd_target"](target=target), rest


@both_precisions
@cases("nkd")
def test_nkd_is_the_sum_of_its_two_parts(case, dtype):
    expected, table, models = case["expected"], table_of(case), Models(*pair(case, dtype))
    target, rest = nkd_objectives(case)
    target_C, target_grad_CV = each(target, table, models)
    rest_C, rest_grad_CV = each(rest, table, models)
    tolerance = TOLERANCE[dtype]
    assert_close(spread(target_C, case), expected["target_loss"], tolerance)
    assert_close(spread(rest_C, case), expected["non_target_loss"], tolerance)
    assert_close(spread(target_C + rest_C, case), expected["loss"], tolerance)
    assert_close(spread((target_grad_CV + rest_grad_CV) / len(table), case), expected["grad"])
    found = taken(recipe(*({"objective": part} for part in (target, rest))), table, models)
    assert_close(found.loss, expected["mean_loss"], tolerance)
    assert_close(spread(found.grads["hidden"], case), expected["grad"])


@both_precisions
@cases("nkd")
def test_nkd_by_the_teachers_first_token_reads_no_sampled_one(case, dtype):
    if case["inputs"]["target_kind"] == "teacher_argmax":
        table, models = table_of(case), Models(*pair(case, dtype))
        parts = [{"objective": part} for part in nkd_objectives(case)]
        other = replace(table, token_id_C=(table.token_id_C + 1) % models.student.head.vocabulary)
        one, same = (taken(recipe(*parts), now, models) for now in (table, other))
        assert torch.equal(one.loss, same.loss) and torch.equal(one.grads["hidden"], same.grads["hidden"])


@both_precisions
@cases("nkd")
def test_forward_kl_is_the_binary_kl_of_the_target_and_the_rest_of_the_others(case, dtype):
    given, expected = case["inputs"], case["expected"]["kl_identity"]
    student, teacher = (states(given[f"{who}_logits"], dtype) for who in ("student", "teacher"))
    table = token_table([len(expected)], {}, token_id_C=torch.tensor(given["targets"]))
    models, same = Models(student, teacher), Models(teacher, teacher)
    forward_C, _ = each(OBJECTIVES["forward_kl"](), table, models)
    own, theirs = (statistics(s, s, token_id_N=table.token_id_C)["student_logprob"] for s in (student, teacher))
    across, within = (each(OBJECTIVES["nkd_non_target"](gamma=1.0), table, m)[0] for m in (models, same))
    found = {"forward_kl": forward_C, "teacher_rest": -torch.expm1(theirs), "non_target_kl": across - within}
    for name, found_C in found.items():
        assert_close(found_C, [row[name] for row in expected], TOLERANCE[dtype])
    binary_C, _ = each(OBJECTIVES["nkd_target"](stationary=True), table, models)
    for one, p_C, row in zip(binary_C, own.exp(), expected, strict=True):
        lost = torch.finfo(dtype).eps / max(1 - float(p_C), torch.finfo(dtype).eps)  # digits of 1 − p that p has not
        assert_close(one, row["binary_kl"], TOLERANCE[dtype] + lost)


def uskd_models(case, dtype: torch.dtype) -> Models:
    return Models(logits(case, "student", dtype), weak_NH=logits(case, "weak", dtype).hidden_NH)


@both_precisions
@cases("uskd")
def test_uskd_pays_its_three_parts(case, dtype):
    given, expected, table, models = case["inputs"], case["expected"], table_of(case), uskd_models(case, dtype)
    own = {key: given[key] for key in ("alpha", "beta", "mu")}
    found = taken(recipe({"objective": {"type": "uskd", **own}}), table, models)
    assert_close(found.loss, expected["mean_loss"], TOLERANCE[dtype])
    assert_close(spread(found.plans[0].constant_C, case), expected["soft_target"], TOLERANCE[dtype])
    assert_close(spread(found.grads["hidden"], case), expected["grad_student"])
    assert_close(spread(found.grads["weak"], case), expected["grad_weak"])


@both_precisions
@cases("uskd")
@pytest.mark.parametrize(("part", "key"), [("target", "alpha"), ("non_target", "beta"), ("weak", "mu")])
def test_each_part_of_uskd_alone(case, dtype, part, key):
    """A token's part, as the step's constants leave it: the target's label is a mean over all tokens."""
    table, models = table_of(case), uskd_models(case, dtype)
    objective = OBJECTIVES["uskd"](**{"alpha": 0.0, "beta": 0.0, "mu": 0.0, key: 1.0})
    student = models.student.head.logits(models.student.hidden_NH)
    weak = models.student.head.logits(models.weak_NH)
    constant_C = taken(paying(objective), with_ones(table), models).plans[0].constant_C
    value_C = objective.rows(student, weak, table.token_id_C, constant_C)
    assert_close(spread(value_C, case), case["expected"][f"{part}_loss"])


@both_precisions
@cases("uskd")
def test_the_soft_labels_of_uskd_follow_zipf_by_rank(case, dtype):
    expected, target_n1 = case["expected"], table_of(case).token_id_C[:, None]
    models = uskd_models(case, dtype)
    log_s, log_w = (x.log_softmax(-1) for x in (models.student.hidden_NH, models.weak_NH))
    label_CV = soft_labels(log_s, log_w, target_n1)
    assert_close(spread(label_CV, case), expected["soft_non_target"])
    rank_CV = torch.tensor(expected["rank"], dtype=dtype)[counted(case)]
    others_CV = torch.ones_like(label_CV).scatter(-1, target_n1, 0).bool()
    for label_V, rank_V, others_V in zip(label_CV, rank_CV, others_CV, strict=True):
        product = (label_V * rank_V)[others_V]
        assert_close(product / product[0], torch.ones(len(product)))


@both_precisions
@cases("tgdpo", "tgdpo")
@pytest.mark.parametrize("field", ["unclamped", "clamped"])
def test_tgdpo(case, dtype, field):
    given, expected = case["inputs"], case["expected"][field]
    objective = TGDPO(alpha=given["alpha"], beta=given["beta"], clamp=field == "clamped")
    table = pairs_table(given["pairs"], dtype)
    chosen = objective.choose(table, torch.ones(len(table)))
    assert_close(chosen.value, expected["mean_loss"], TOLERANCE[dtype])
    slopes = both_sides(expected["pairs"], "grad_policy")
    assert_close(chosen.slope_CK.squeeze(-1), slopes, TOLERANCE[dtype])
    for pair_given, pair_expected in zip(given["pairs"], expected["pairs"], strict=True):
        table = pairs_table([pair_given], dtype)
        alone = objective.choose(table, torch.ones(len(table)))
        assert_close(alone.value, pair_expected["loss"], TOLERANCE[dtype])


@both_precisions
@cases("tgdpo", "tgdpo")
def test_tgdpos_trust(case, dtype):
    """f of each token, and r̂ = f − 1 at α = 1; the share of f at 0 or below is counted without the clamp."""
    given, expected, not_positive = case["inputs"], case["expected"], 0
    objective = TGDPO(alpha=given["alpha"], beta=given["beta"])
    table = pairs_table(given["pairs"], dtype)
    sign_C = (1 - 2 * (table.rollout_C % 2)).to(dtype)
    for field in ("unclamped", "clamped"):
        f_C = objective.model_copy(update={"clamp": field == "clamped"}).trust(table, sign_C)
        found = both_sides(expected[field]["pairs"], "f")
        assert_close(f_C, found)
        not_positive += int((f_C <= 0).sum()) if field == "unclamped" else 0
    guide_C = objective.model_copy(update={"alpha": 1.0}).trust(table, torch.ones_like(sign_C)) - 1
    guides = both_sides(expected["unclamped"]["pairs"], "r_hat")
    assert_close(guide_C, guides)
    assert not_positive / len(table) == pytest.approx(expected["share_of_f_not_positive"], abs=1e-12)


def both_sides(pairs: list[dict], key: str) -> list[float]:
    """A field of every token: the chosen rollout of a pair, then the rejected one."""
    return [value for pair in pairs for side in "wl" for value in pair[f"{key}_{side}"]]


def pairs_table(pairs: list[dict], dtype: torch.dtype):
    """Two rollouts a prompt, the chosen one first and with the higher reward."""
    names = {"student_logprob": "policy", "teacher_logprob": "reward", "reference_logprob": "ref"}
    columns = {name: torch.tensor(both_sides(pairs, key), dtype=dtype) for name, key in names.items()}
    number = torch.arange(2 * len(pairs))
    return token_table(
        [len(pair[f"policy_{side}"]) for pair in pairs for side in "wl"],
        columns,
        reward_B=(1 - number % 2).to(dtype),
        group_B=number // 2,
    )


@both_precisions
@cases("tgdpo", "tgdpo_logits")
def test_tgdpo_from_logits(case, dtype):
    given, expected = case["inputs"], case["expected"]

    def both(who: str) -> HiddenStates:
        return states(given[f"{who}_logits_w"] + given[f"{who}_logits_l"], dtype)

    ids = given["token_ids_w"], given["token_ids_l"]
    table = token_table(
        [len(side) for side in ids], {}, token_id_C=torch.tensor(ids[0] + ids[1]), reward_B=torch.tensor([1.0, 0.0])
    )
    objective = {"type": "tgdpo", "alpha": given["alpha"], "beta": given["beta"]}
    models = Models(both("student"), both("reward"), reference=both("ref"))
    found = taken(recipe({"objective": objective}), table, models)
    assert_close(found.loss, expected["loss"], TOLERANCE[dtype])
    grads = expected["grad_student_logits_w"] + expected["grad_student_logits_l"]
    assert_close(found.grads["hidden"], grads)
    sign_C = torch.where(found.table.rollout_C == 0, 1, -1).to(dtype)
    assert_close(TGDPO(**objective).trust(found.table, sign_C), expected["f_w"] + expected["f_l"])
    guide_C = TGDPO(alpha=1.0, beta=given["beta"]).trust(found.table, torch.ones_like(sign_C)) - 1
    assert_close(guide_C, expected["r_hat_w"] + expected["r_hat_l"])


def test_objectives_in_a_recipe_are_the_records_themselves():
    assert all(issubclass(cls, Record) for cls in OBJECTIVES.values())
