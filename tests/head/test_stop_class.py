"""All end tokens as one outcome (arXiv 2609.20511): in statistics, losses and gradients, whichever comes first."""

import math
from dataclasses import replace

import pytest
import torch

from opd.head.pay import DensePay
from opd.head.settings import HeadSettings
from opd.head.statistics import MEASURED
from opd.head.tile import TopScores
from opd.objectives import OBJECTIVES
from tests.build import Models, gradient, paying, random_states, states, statistics, taken, token_table
from tests.oracle import assert_close

P, Q = [0.5, 0.4, 0.1], [0.5, 0.001, 0.499]
STOP = (2, 5, 6)
OF_THE_OUTCOME = {
    "student_entropy",
    "teacher_entropy",
    "reverse_kl",
    "forward_kl",
    "student_logprob",
    "teacher_logprob",
}


def log(p: list[float]):
    return states([[math.log(x) for x in p]])


def random_models(rows: int = 6) -> Models:
    sizes = ((4, 1), (5, 2), (4, 3), (4, 4))
    student, teacher, weak, reference = (random_states(rows, hidden, 8, seed=seed) for hidden, seed in sizes)
    return Models(student, teacher, weak.hidden_NH, reference)


def random_ids(rows: int = 6):
    """Every end token is sampled, and others."""
    return torch.tensor([2, 5, 0, 6, 3, 7])[:rows]


@pytest.mark.parametrize(("stop", "merge", "kl"), [((1, 2), True, 0.0), ((2, 1), True, 0.0), ((1, 2), False, 2.235842)])
def test_different_end_tokens_agree_once_they_are_one(stop, merge, kl):
    settings = HeadSettings(stop=stop, merge_stop=merge)
    models, one = Models(log(P), log(Q)), torch.ones(1, dtype=torch.float64)
    loss, grads = gradient(models, [DensePay(OBJECTIVES["reverse_kl"](), one)], torch.tensor([1]), settings)
    found = statistics(models.student, models.teacher, stop=stop, merge_stop=merge, token_id_N=torch.tensor([1]))
    assert_close(loss, kl, 1e-6)
    assert_close(found["reverse_kl"], [kl], 1e-6)
    assert (grads["hidden"].abs().max() > 1e-12) != merge
    assert_close(found["student_stop_mass"], [0.5])
    assert_close(found["teacher_stop_mass"], [0.5])


def test_statistics_see_the_merged_outcome_and_only_the_trainers_log_prob_the_token():
    found = statistics(log(P), log(Q), stop=(1, 2), merge_stop=True, token_id_N=torch.tensor([2]))
    assert_close(found["student_entropy"], [math.log(2)])
    assert_close(found["teacher_entropy"], [math.log(2)])
    assert_close(found["student_logprob"], [math.log(0.5)])
    assert_close(found["trainer_logprob"], [math.log(0.1)])


def test_statistics_of_merged_outcomes_are_those_of_merged_columns():
    models, settings = random_models(), {"temperature": 0.6, "token_id_N": random_ids()}
    merged = statistics(models.student, models.teacher, stop=STOP, merge_stop=True, **settings)
    short = [merged_columns(s, 0.6) for s in (models.student, models.teacher)]
    plain = statistics(*short, token_id_N=torch.tensor([2, 2, 0, 2, 3, 5]))
    for name in OF_THE_OUTCOME:
        assert_close(merged[name], plain[name], 1e-12)


def merged_columns(given, temperature: float):
    """The same distributions over a vocabulary whose end tokens are one column, in the first one's place."""
    p_NV = (given.head.logits(given.hidden_NH) / temperature).softmax(-1)
    whole_N1 = p_NV[:, STOP].sum(-1, keepdim=True)
    return states(torch.cat([p_NV[:, :2], whole_N1, p_NV[:, [3, 4, 7]]], -1).log())


@pytest.mark.parametrize("name", ["reverse_kl", "forward_kl"])
def test_merging_lowers_any_divergence(name):
    models = random_models()
    raw, merged = (statistics(models.student, models.teacher, [name], stop=STOP, merge_stop=m) for m in (False, True))
    assert (merged[name] < raw[name]).all()


@pytest.mark.parametrize("stop", [(), (3,)])
def test_a_class_of_one_token_merges_nothing(stop):
    models = random_models()
    raw, merged = (
        statistics(models.student, models.teacher, MEASURED, stop=stop, merge_stop=merge) for merge in (False, True)
    )
    assert all(torch.equal(raw[name], merged[name]) for name in MEASURED)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_which_end_token_comes_first_does_not_matter(name):
    models = random_models()
    objective = OBJECTIVES[name](**({"k": 4} if name == "plackett_luce" else {}))
    table = token_table([3, 3], {"weight": torch.ones(6)}, token_id_C=random_ids(), reward_B=torch.tensor([0.0, 1.0]))
    recipe = paying(objective, stop_class=True, loss_temperature=0.8)
    one, other = (taken(recipe, table, models, stop=stop) for stop in (STOP, (6, 2, 5)))
    assert_close(other.loss, one.loss, 1e-12)
    assert all(torch.allclose(other.grads[part], grad, rtol=0, atol=1e-12) for part, grad in one.grads.items())


def test_a_columns_gradient_is_its_share_of_the_outcomes():
    """With a bias for every column, the bias's gradient is the logits'."""
    models, settings = replace(random_models(1), weak_NH=None), HeadSettings(stop=STOP, merge_stop=True)
    _, grads = gradient(models, [DensePay(OBJECTIVES["forward_kl"](), torch.ones(1))], random_ids(1), settings)
    p_V = models.student.head.logits(models.student.hidden_NH).softmax(-1)[0]
    shares = grads["bias"][list(STOP)] / p_V[list(STOP)]
    assert shares.all()
    assert_close(shares, [float(shares[0])] * len(STOP), 1e-12)


@pytest.mark.parametrize("settings", [{"temperature": 2.0}, {"stop": (1, 2), "merge_stop": True}], ids=str)
def test_a_top_k_teachers_list_is_refused_where_it_would_be_wrong(settings):
    teacher = TopScores(torch.tensor([[0, 1]]), torch.tensor([[-1.0, -2.0]]).double())
    pay = DensePay(OBJECTIVES["reverse_kl"](teacher_top=2), torch.ones(1))
    with pytest.raises(ValueError, match="top-k"):
        gradient(Models(log(P), teacher), [pay], torch.tensor([0]), HeadSettings(**settings))


@pytest.mark.parametrize("name", ["reverse_kl", "forward_kl", "jsd"])
def test_a_list_of_all_outcomes_there_are_leaves_no_tail(name):
    """Six of eight tokens, three being one; the other two can't happen, and so can't what both models rule out."""
    models, settings = random_models(), HeadSettings(stop=STOP, merge_stop=True)
    models = replace(models, weak_NH=None)
    for most in (6, 5):
        whole, listed = (
            gradient(models, [DensePay(OBJECTIVES[name](teacher_top=k), torch.ones(6))], random_ids(), settings)
            for k in (None, most)
        )
        assert_close(listed[0], whole[0], 1e-12)
        for part, grad in whole[1].items():
            assert_close(listed[1][part], grad, 1e-12)
        for its in (models.student, models.teacher):
            its.head.bias_V[7] = -torch.inf


def test_a_tail_that_the_student_alone_rules_out_costs_without_end():
    models, pay = (
        replace(random_models(1), weak_NH=None),
        DensePay(OBJECTIVES["forward_kl"](teacher_top=7), torch.ones(1)),
    )
    last = models.teacher.head.logits(models.teacher.hidden_NH).argmin()
    models.student.head.bias_V[last] = -torch.inf
    assert gradient(models, [pay], random_ids(1), HeadSettings())[0].isinf()


@pytest.mark.parametrize("objective", [OBJECTIVES["reverse_kl"](), OBJECTIVES["reverse_kl"](teacher_top=5)], ids=repr)
def test_a_class_that_both_models_rule_out_trains_nothing(objective):
    models, settings = replace(random_models(), weak_NH=None), HeadSettings(stop=STOP, merge_stop=True)
    for its in (models.student, models.teacher):
        its.head.bias_V[list(STOP)] = -torch.inf
    loss, grads = gradient(models, [DensePay(objective, torch.ones(6))], random_ids(), settings)
    expected, plain = gradient(
        models, [DensePay(OBJECTIVES["reverse_kl"](), torch.ones(6))], random_ids(), HeadSettings()
    )
    assert_close(loss, expected, 1e-12)
    for part, grad in plain.items():
        assert_close(grads[part], grad, 1e-12)


def test_candidates_that_can_not_happen_are_paid_nothing():
    """Of the eight best tokens two are of a class that stands elsewhere."""
    table = token_table([6], {"weight": torch.ones(6)}, token_id_C=random_ids())
    recipes = [paying(OBJECTIVES["plackett_luce"](k=k), stop_class=True) for k in (8, 6)]
    found, expected = (taken(recipe, table, random_models(), stop=STOP) for recipe in recipes)
    assert_close(found.loss, expected.loss, 1e-12)
    for part, grad in expected.grads.items():
        assert_close(found.grads[part], grad, 1e-12)
