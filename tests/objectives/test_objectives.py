"""One contract over the registry: an objective added later is tested from its first day."""

from dataclasses import replace
from itertools import pairwise
from typing import Literal, get_args, get_origin

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from opd.batch import TokenTable
from opd.head.loss import head_loss
from opd.head.statistics import STATISTICS
from opd.head.weights import HiddenStates
from opd.objectives import OBJECTIVES
from opd.objectives.base import ChosenObjective, DenseObjective, LogProbs, Objective, RowsObjective
from opd.objectives.jsd import JSD
from opd.plan import chosen_loss, pays, plan
from opd.step import head_settings
from tests.build import Models, measured, paying, random_states, states, taken, token_table
from tests.oracle import assert_close

ROWS, VOCABULARY = 9, 7
STOP = (2, 5)
BASE = {"plackett_luce": {"k": 3}}
"""Settings that suit a vocabulary of seven."""
MORE = {
    "jsd": [{"beta": beta} for beta in (0, 0.1, 0.9, 1)],
    "skew_kl": [{"alpha": 0.7, "direction": d} for d in ("forward", "reverse")],
    "nkd_non_target": [{"temperature": 2.0, "gamma": 0.7}],
    "nkd_target": [{"stationary": True, "target": "teacher"}],
    "sampled_reverse_kl": [{"clip": 0.2}],
    "plackett_luce": [{"k": 2}, {"k": 5}],
    "tgdpo": [{"alpha": 2.0, "beta": 1.0, "clamp": True}],
    "uskd": [{"alpha": 0.5, "beta": 1.0, "mu": 1.0}],
}
"""Settings beside the defaults and each choice of each field."""
SURROGATES = {"sampled_reverse_kl"}
"""Objectives whose value is not what their gradient descends: it holds the student's own log-prob fixed."""


def choices(cls: type[Objective]) -> list[dict]:
    """Defaults, each other choice of each field, and a list of the teacher's likeliest where there is one."""
    made = [{}]
    for name, field in cls.model_fields.items():
        if get_origin(field.annotation) is Literal and name != "type":
            made += [{name: choice} for choice in get_args(field.annotation) if choice != field.default]
        if field.annotation is bool:
            made.append({name: not field.default})
    if "teacher_top" in cls.model_fields:
        made += [{"teacher_top": 3}, {"teacher_top": 3, "tail": "renormalise"}, {"teacher_top": VOCABULARY}]
    return made


def variants() -> list[Objective]:
    """Every objective of the registry, with every setting that changes its formula."""
    made = []
    for name, cls in OBJECTIVES.items():
        for settings in choices(cls) + MORE.get(name, []):
            try:
                made.append(cls(**BASE.get(name, {}) | settings))
            except ValidationError:
                continue
    return list({repr(objective): objective for objective in made}.values())


every_objective = pytest.mark.parametrize("objective", variants(), ids=repr)
every_dense = pytest.mark.parametrize("objective", [o for o in variants() if isinstance(o, DenseObjective)], ids=repr)
every_chosen = pytest.mark.parametrize("objective", [o for o in variants() if isinstance(o, ChosenObjective)], ids=repr)
HEADS = {
    "plain": ({}, {}),
    "softcap_scale_hot": ({"softcap": 2.0, "scale": 3.0}, {"loss_temperature": 1.7}),
    "stop_class_cold": ({"scale": 0.5}, {"stop_class": True, "loss_temperature": 0.7}),
}
every_head = pytest.mark.parametrize(("head", "settings"), HEADS.values(), ids=HEADS.keys())


def models(rows: int = ROWS, **head) -> Models:
    sizes = ((4, 1), (5, 2), (4, 3), (4, 4))
    student, teacher, weak, reference = (random_states(rows, n, VOCABULARY, seed=s, **head) for n, s in sizes)
    return Models(student, teacher, weak.hidden_NH, reference)


def table(lengths: tuple[int, ...] = (3, 2, 0, 1, 3), weight_C: Tensor | None = None):
    """Five rollouts of two prompts, every one with a reward, every token another weight."""
    total, rollouts = sum(lengths), len(lengths)
    generator = torch.Generator().manual_seed(7)
    weight_C = torch.rand(total, generator=generator, dtype=torch.float64) + 0.3 if weight_C is None else weight_C
    return token_table(
        list(lengths),
        {"weight": weight_C},
        token_id_C=torch.tensor([2, 0, 5, 1, 3, 6, 4, 2, 5])[:total],
        reward_B=torch.tensor([1.0, 0.0, 0.5, 0.2, 0.9], dtype=torch.float64)[:rollouts],
        group_B=torch.tensor([0, 0, 0, 1, 1])[:rollouts],
        sampler_logprob_C=-torch.linspace(0.5, 3, total) if total else None,
    )


def rows_of(given: Models, rows_n: Tensor) -> Models:
    """The models at those rows alone."""
    return Models(
        given.student.rows(rows_n), given.teacher.rows(rows_n), given.weak_NH[rows_n], given.reference.rows(rows_n)
    )


def equal(one, other, tolerance: float = 1e-12) -> None:
    """The same loss, and the same gradient."""
    assert_close(one.loss, other.loss, tolerance)
    assert one.grads.keys() == other.grads.keys()
    for part, grad in other.grads.items():
        assert_close(one.grads[part], grad, tolerance)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_registry_name_is_the_type_that_a_recipe_writes(name):
    assert OBJECTIVES[name]().type == name and OBJECTIVES[name].__doc__
    assert issubclass(OBJECTIVES[name], DenseObjective | ChosenObjective | RowsObjective)


@every_objective
def test_it_needs_what_there_is(objective):
    assert set(objective.needs) <= {*STATISTICS, "reference_logprob", "reward", "advantage"}
    taken(paying(objective), table(), models())


@every_head
@every_objective
def test_the_gradient_is_that_of_the_loss_by_finite_differences(objective, head, settings):
    """In states, head, bias and a middle layer's states; weights and the table's constants are held fixed."""
    recipe, given = paying(objective, **settings), models(**head)
    settings = head_settings(recipe, STOP)
    whole = measured(recipe, table(), given, settings)
    fixed = plan(recipe, whole, 0)
    paid = pays(recipe.loss, fixed, torch.arange(ROWS), torch.device("cpu"))

    def loss(hidden, weight, bias, weak):
        own = HiddenStates(hidden, replace(given.student.head, weight_VH=weight, bias_V=bias))
        there = replace(given, student=HiddenStates(hidden.detach(), replace(own.head, **detached(weight, bias))))
        value = chosen_value(recipe, measured(recipe, table(), there, settings), fixed)
        return head_loss(own, given.teacher, paid, whole.token_id_C, settings, weak) + value

    inputs = (given.student.hidden_NH, given.student.head.weight_VH, given.student.head.bias_V, given.weak_NH)
    assert torch.autograd.gradcheck(loss, [x.clone().requires_grad_() for x in inputs], fast_mode=True)


def detached(weight, bias) -> dict:
    return {"weight_VH": weight.detach(), "bias_V": bias.detach()}


def chosen_value(recipe, now, fixed) -> float:
    """What chosen objectives pay at the statistics of now; a surrogate's by its slopes, which is all that it is."""
    objective = recipe.loss[0].objective
    if objective.type not in SURROGATES:
        return chosen_loss(recipe.loss, plan(recipe, now, 0))
    return float((fixed[0].chosen.slope_CK.squeeze(-1) * now[objective.logprobs]).sum())


@every_dense
@pytest.mark.parametrize("spread", [0.01, 3.0, 30.0])
def test_the_slope_is_the_derivative_of_the_value_in_a_free_log_p(objective, spread):
    log_ps_nO, log_pt_nO = log_probs(1, spread=spread).requires_grad_(), log_probs(2, spread=spread)
    value_nO, slope_nO = objective(LogProbs(log_ps_nO), LogProbs(log_pt_nO))
    (expected_nO,) = torch.autograd.grad(value_nO.sum(), log_ps_nO)
    assert_close(slope_nO.detach(), expected_nO, 1e-12)


@every_dense
def test_value_and_slope_are_elementwise(objective):
    log_ps_nO, log_pt_nO = log_probs(1), log_probs(2)
    value_nO, slope_nO = objective(LogProbs(log_ps_nO), LogProbs(log_pt_nO))
    for rows, columns in ((slice(2, 3), slice(None)), (slice(None), slice(4, 6))):
        part_value, part_slope = objective(LogProbs(log_ps_nO[rows, columns]), LogProbs(log_pt_nO[rows, columns]))
        assert_close(part_value, value_nO[rows, columns], 1e-15)
        assert_close(part_slope, slope_nO[rows, columns], 1e-15)


@every_dense
def test_inputs_are_left_as_they_were(objective):
    log_ps_nO, log_pt_nO = log_probs(1), log_probs(2)
    objective(LogProbs(log_ps_nO), LogProbs(log_pt_nO))
    assert torch.equal(log_ps_nO, log_probs(1)) and torch.equal(log_pt_nO, log_probs(2))


def log_probs(seed: int, *, spread: float = 3.0) -> Tensor:
    logits = spread * torch.randn(5, 9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return logits.log_softmax(-1)


@every_objective
@pytest.mark.parametrize("tile_bytes", [1, 2500])
def test_tiles_do_not_matter(objective, tile_bytes):
    recipe = paying(objective, stop_class=True)
    whole = taken(recipe, table(), models(), stop=STOP)
    equal(taken(recipe, table(), models(), stop=STOP, tile_bytes=tile_bytes), whole)


@every_objective
def test_the_order_of_rows_does_not_matter(objective):
    order_n = torch.tensor([4, 8, 0, 2, 7, 1, 6, 3, 5])
    given, recipe = models(), paying(objective)
    found, whole = taken(recipe, table().rows(order_n), rows_of(given, order_n)), taken(recipe, table(), given)
    for part in ("hidden", "weak"):
        whole.grads[part] = whole.grads[part][order_n]
    equal(found, whole)


@every_objective
def test_the_order_of_the_vocabulary_does_not_matter(objective):
    order_V = torch.tensor([3, 6, 0, 2, 5, 1, 4])
    given, recipe = models(), paying(objective)

    def turned(s: HiddenStates) -> HiddenStates:
        return replace(s, head=replace(s.head, weight_VH=s.head.weight_VH[order_V], bias_V=s.head.bias_V[order_V]))

    other = Models(turned(given.student), turned(given.teacher), given.weak_NH, turned(given.reference))
    renamed = replace(table(), token_id_C=order_V.argsort()[table().token_id_C])
    found, whole = taken(recipe, renamed, other), taken(recipe, table(), given)
    for part in ("weight", "bias"):
        whole.grads[part] = whole.grads[part][order_V]
    equal(found, whole)


OWN_TEMPERATURE = {"nkd_non_target"}
"""Objectives that say themselves by what they divide the logits."""


@every_objective
def test_the_loss_temperature_divides_every_models_logits(objective):
    """And nothing is multiplied by its square: the gradient is that of a head that divides by it."""
    if objective.type not in OWN_TEMPERATURE and "trainer_logprob" not in objective.needs:
        found = taken(paying(objective, loss_temperature=2.5), table(), models())
        equal(found, taken(paying(objective), table(), models(scale=0.4)))


@every_objective
def test_weight_0_is_a_token_that_is_not_there(objective):
    kept_C = torch.tensor([1, 0, 1, 0, 1, 1, 1, 0, 1]).bool()
    given, recipe = models(), paying(objective)
    whole = replace(table(), statistics={"weight": torch.where(kept_C, table()["weight"], 0)})
    rows_n = kept_C.nonzero().squeeze(-1)
    with_zeros, without = taken(recipe, whole, given), taken(recipe, whole.rows(rows_n), rows_of(given, rows_n))
    assert torch.equal(with_zeros.loss, without.loss)
    for part, grad in with_zeros.grads.items():
        assert torch.equal(grad[kept_C] if part in ("hidden", "weak") else grad, without.grads[part])
    assert not with_zeros.grads["hidden"][~kept_C].any() and not with_zeros.grads["weak"][~kept_C].any()


@every_objective
@pytest.mark.parametrize("lengths", [(3, 2, 0, 1, 3), (0, 0), ()], ids=str)
def test_an_empty_selection_pays_0_with_gradient_0(objective, lengths):
    total = sum(lengths)
    nothing = table(lengths, torch.zeros(total, dtype=torch.float64))
    found = taken(paying(objective), nothing, rows_of(models(), torch.arange(total)))
    assert found.loss == 0 and found.plans[0].count == 0
    assert not any(grad.any() or grad.isnan().any() for grad in found.grads.values())


@every_objective
@pytest.mark.parametrize("place", ["weight", "student", "teacher"])
def test_what_is_not_a_number_shows_in_the_loss(objective, place):
    given, now = models(), table()
    if place == "weight":
        now["weight"][1] = torch.nan
    else:
        getattr(given, place).hidden_NH[1] = torch.nan
    reads = place != "teacher" or objective.reads_teacher or any("teacher" in name for name in objective.needs)
    assert taken(paying(objective), now, given).loss.isnan() == reads


EXTREME = [
    [1e4, -1e4, 0.0, 3.0, -torch.inf, 1.0, 2.0],
    [-1e4, 0.0, 1e4, 1e4, -torch.inf, -5.0, 0.0],
    [0.0, 1.0, 2.0, -1e4, -torch.inf, 1e4, -1e4],
    [-1e4, -1e4, 1e4, -1e4, -torch.inf, -1e4, -1e4],
    [5.0, 5.0, 5.0, 5.0, -torch.inf, 5.0, 5.0],
    [1e4, 1e4, 1e4, 1e4, -torch.inf, -1e4, 1e4],
]


@every_objective
@pytest.mark.parametrize("stop_class", [False, True], ids=["raw", "merged"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])
def test_extreme_logits_and_classes_that_both_rule_out_stay_finite(objective, dtype, stop_class):
    orders = ([0, 1, 2, 3, 4, 5], [1, 0, 3, 5, 2, 4], [2, 3, 0, 4, 5, 1], [5, 4, 0, 1, 3, 2])
    student, teacher, weak, reference = (states([EXTREME[i] for i in order], dtype) for order in orders)
    now = token_table(
        [2, 4],
        {"weight": torch.ones(6, dtype=dtype)},
        token_id_C=torch.tensor([0, 1, 2, 3, 5, 6]),
        reward_B=torch.tensor([0.0, 1.0], dtype=dtype),
    )
    now = replace(
        now, sampler_logprob_C=(student.head.logits(student.hidden_NH)).log_softmax(-1)[range(6), now.token_id_C]
    )
    given = Models(student, teacher, weak.hidden_NH, reference)
    found = taken(paying(objective, stop_class=stop_class), now, given, stop=STOP)
    assert found.loss.isfinite()
    assert all(grad.isfinite().all() for grad in found.grads.values())


@every_objective
def test_terms_add_up(objective):
    given, other = models(), OBJECTIVES["reverse_kl"]()
    found = taken(paying(objective, other), table(), given)
    parts = [taken(paying(o), table(), given) for o in (objective, other)]
    assert_close(found.loss, parts[0].loss + parts[1].loss, 1e-12)
    for part, grad in found.grads.items():
        assert_close(grad, parts[0].grads[part] + parts[1].grads[part], 1e-12)


AT_REST = [o for o in variants() if isinstance(o, DenseObjective) and o.type not in ("entropy", "nkd_non_target")]
AT_REST += [OBJECTIVES["nkd_target"](stationary=True, target=t) for t in ("sampled", "teacher")]
AT_REST.append(OBJECTIVES["sampled_reverse_kl"]())


@pytest.mark.parametrize("objective", AT_REST, ids=repr)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_a_divergence_is_positive_and_at_rest_where_student_and_teacher_are_equal(objective, temperature):
    given, recipe = models(), paying(objective, loss_temperature=temperature)
    same = taken(recipe, table(), replace(given, teacher=given.student))
    assert same.loss.abs() < 1e-8
    assert max(grad.abs().max() for grad in same.grads.values()) < 1e-8
    if objective.type not in SURROGATES:
        rows = torch.tensor([[0], [4], [7]])
        assert all(taken(recipe, table().rows(one), rows_of(given, one)).loss > 0 for one in rows)


OF_THE_TEACHER = {"teacher_logprob": -torch.inf, "candidate_teacher_logprob": -torch.inf, "reverse_kl": torch.inf}
"""What the table says of a token that the teacher rules out."""


def assert_ruled_out_costs_nothing(objective: Objective, now: TokenTable, row: int) -> None:
    expected = taken(paying(objective), now, models())
    columns = {name: column.clone() for name, column in expected.table.statistics.items()}
    for name in columns.keys() & OF_THE_TEACHER:
        columns[name][row] = OF_THE_TEACHER[name]
    equal(taken(paying(objective), now.with_statistics(columns), models()), expected)


@every_chosen
def test_what_the_teacher_rules_out_costs_a_token_that_pays_nothing_nothing(objective):
    weight_C = table()["weight"].index_fill(0, torch.tensor([3]), 0.0)
    assert_ruled_out_costs_nothing(objective, table(weight_C=weight_C), row=3)


def test_what_the_teacher_rules_out_costs_a_rollout_without_a_pair_nothing():
    alone = replace(table(), group_B=torch.tensor([2, 0, 0, 1, 1]))
    assert_ruled_out_costs_nothing(OBJECTIVES["tgdpo"](), alone, row=1)


@pytest.mark.parametrize("name", ["sampled_reverse_kl", "tgdpo"])
def test_a_sampled_token_that_the_teacher_rules_out_leaves_no_step_to_take(name):
    given = models()
    given.teacher.head.bias_V[1] = -torch.inf
    found = taken(paying(OBJECTIVES[name]()), table(), given)
    assert not found.grads["hidden"][3].isfinite().any()


@pytest.mark.parametrize("stationary", [False, True])
def test_a_target_that_the_teacher_rules_out_has_a_probability_of_0(stationary):
    given, unlikely = models(), models()
    given.teacher.head.bias_V[1], unlikely.teacher.head.bias_V[1] = -torch.inf, -1e4
    recipe = paying(OBJECTIVES["nkd_target"](stationary=stationary))
    equal(taken(recipe, table(), given), taken(recipe, table(), unlikely))


@every_chosen
def test_a_chosen_objective_touches_only_the_tokens_that_it_chose(objective):
    found = taken(paying(objective), table(), models())
    chosen = found.plans[0].chosen
    assert chosen.token_id_CK.shape == chosen.slope_CK.shape
    assert chosen.slope_CK[:, objective.candidates or 1 :].count_nonzero() == 0
    for row, slope_K in enumerate(chosen.slope_CK):
        assert bool(slope_K.any()) == bool(found.grads["hidden"][row].any())


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_skewed_kls_lie_between_nothing_and_the_plain_kl(direction):
    both = LogProbs(log_probs(1)), LogProbs(log_probs(2))
    plain = OBJECTIVES[f"{direction}_kl"]()(*both)[0].sum(-1)
    shares = [1e-9, 0.1, 0.5, 0.9, 1 - 1e-9]
    skewed = [OBJECTIVES["skew_kl"](alpha=a, direction=direction)(*both)[0].sum(-1) for a in shares]
    assert_close(skewed[0], plain, 1e-5)
    assert all((more >= less).all() for more, less in pairwise(skewed)) and skewed[-1].abs().max() < 1e-7


def test_jsd_is_symmetric_in_its_two_sides():
    ours, theirs = LogProbs(log_probs(1)), LogProbs(log_probs(2))
    one, other = JSD(beta=0.3)(ours, theirs)[0], JSD(beta=0.7)(theirs, ours)[0]
    assert_close(one.sum(-1), other.sum(-1), 1e-12)


@pytest.mark.parametrize("beta", [-0.1, 1.1, float("nan")])
def test_a_beta_outside_its_range_is_refused(beta):
    with pytest.raises(ValidationError, match="beta"):
        JSD(beta=beta)


def test_a_tail_without_a_list_is_refused():
    with pytest.raises(ValidationError, match="no effect"):
        OBJECTIVES["forward_kl"](tail="renormalise")


def test_a_clipped_ratio_pays_nothing_more():
    """PPO's clip: inside it the slope is the ratio's share, beyond it 0 where A would carry the ratio further out."""
    now, given = table(weight_C=torch.ones(ROWS, dtype=torch.float64)), models()
    free = taken(paying(OBJECTIVES["sampled_reverse_kl"]()), now, given)
    own_C, slope_C = free.table["student_logprob"], free.plans[0].chosen.slope_CK.squeeze(-1)
    towards_C = (free.table["teacher_logprob"] - own_C).sign()
    log_ratio_C = towards_C * torch.tensor([0, 0.1, -0.1, 1, 1, 1, -1, -1, -1], dtype=torch.float64)
    now = replace(now, sampler_logprob_C=own_C - log_ratio_C)
    found = taken(paying(OBJECTIVES["sampled_reverse_kl"](clip=0.2)), now, given)
    expected_C = torch.where(log_ratio_C * towards_C == 1, 0, slope_C * log_ratio_C.exp())
    assert_close(found.plans[0].chosen.slope_CK.squeeze(-1), expected_C, 1e-12)


@pytest.mark.parametrize("baseline", ["none", "full_kl"])
def test_sampled_tokens_follow_the_whole_reverse_kl_in_expectation(baseline):
    """Over all tokens that the student may sample, in its proportions."""
    given, one = models(1), table((1,), torch.ones(1))
    p_V = given.student.head.logits(given.student.hidden_NH).softmax(-1)[0]
    recipe = paying(OBJECTIVES["sampled_reverse_kl"](baseline=baseline))
    tokens = [replace(one, token_id_C=torch.tensor([y])) for y in range(VOCABULARY)]
    mean_H = p_V @ torch.cat([taken(recipe, now, given).grads["hidden"] for now in tokens])
    assert_close(mean_H, taken(paying(OBJECTIVES["reverse_kl"]()), one, given).grads["hidden"][0], 1e-12)


def test_a_task_reward_pays_each_rollout_by_its_advantage():
    found = taken(paying(OBJECTIVES["task_reward"]()), table(weight_C=torch.ones(ROWS)), models())
    expected_C = -table().advantage_B[table().rollout_C] / ROWS
    assert_close(found.plans[0].chosen.slope_CK.squeeze(-1), expected_C, 1e-12)


def test_a_constant_penalty_pays_every_token_alike():
    found = taken(paying(OBJECTIVES["constant_penalty"](penalty=0.5)), table(weight_C=torch.ones(ROWS)), models())
    assert_close(found.plans[0].chosen.slope_CK, [[0.5 / ROWS]] * ROWS, 1e-12)
