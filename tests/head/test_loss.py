"""How the head adds up what rows pay. What each objective pays is tested in tests/objectives."""

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from opd.head.loss import head_loss
from opd.head.pay import ChosenPay, DensePay, RowsPay, retained_rows
from opd.head.settings import HeadSettings
from opd.head.weights import HeadWeights, HiddenStates
from opd.objectives import OBJECTIVES
from opd.objectives.base import LogProbs
from opd.objectives.jsd import JSD
from tests.build import TILE, Models, gradient, leaves, random_states
from tests.oracle import assert_close, cases, pair

HEADS = {"plain": {}, "softcap": {"softcap": 1.5}, "scale": {"scale": 0.25}, "both": {"softcap": 2.0, "scale": 3.0}}
every_head = pytest.mark.parametrize("head", HEADS.values(), ids=HEADS.keys())
WHOLE = [OBJECTIVES["reverse_kl"](), OBJECTIVES["forward_kl"](), JSD(beta=0.3), OBJECTIVES["entropy"]()]
"""Dense objectives over every outcome."""
in_the_oracle = pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "jsd_0.1", "jsd_0.5", "jsd_0.9"])


def random_pair(rows: int, vocabulary: int = 7, **head) -> Models:
    teacher = random_states(rows, 6, vocabulary, seed=2)
    return Models(random_states(rows, 4, vocabulary, seed=1, **head), teacher)


def random_weights(rows: int, seed: int = 0) -> Tensor:
    """About a third zeros."""
    weight_N = torch.rand(rows, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.where(weight_N < 0.35, 0.0, weight_N)


def paid(models: Models, pays: list, **settings) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients; every row sampled token 0."""
    ids_N = torch.zeros(len(models.student), dtype=torch.long)
    return gradient(models, pays, ids_N, HeadSettings(**{"tile_bytes": TILE} | settings))


def plain_loss(models: Models, pays: list, temperature: float) -> Tensor:
    """The same sum by plain torch on whole logits."""
    both = ((s.head.logits(s.hidden_NH) / temperature).log_softmax(-1) for s in (models.student, models.teacher))
    log_ps_NV, log_pt_NV = both
    return sum((p.objective(LogProbs(log_ps_NV), LogProbs(log_pt_NV))[0].sum(-1) * p.weight_N).sum() for p in pays)


def mixed(rows: int) -> tuple[Models, list]:
    """Every kind of pay at once, on rows of their own."""
    models = random_pair(rows)
    models = replace(models, weak_NH=random_states(rows, 4, 7, seed=3).hidden_NH)
    ids_NK = torch.arange(rows)[:, None] % 7 + torch.tensor([[0, 0]])
    slope_NK = torch.stack([random_weights(rows, 5), -random_weights(rows, 6)], -1)
    rows_pay = RowsPay(OBJECTIVES["uskd"](), random_weights(rows, 7), torch.ones(rows, dtype=torch.float64))
    dense = [DensePay(objective, random_weights(rows, i)) for i, objective in enumerate(WHOLE)]
    return models, [*dense, ChosenPay(ids_NK, slope_NK), rows_pay]


@every_head
def test_the_loss_is_the_plain_sum_over_terms_and_tokens(head):
    models = random_pair(9, **head)
    pays = [DensePay(objective, random_weights(9, i)) for i, objective in enumerate(WHOLE)]
    loss, grads = paid(models, pays, temperature=1.7)
    parts, own = leaves(models.student)
    expected = plain_loss(replace(models, student=own), pays, 1.7)
    assert_close(loss, expected.detach(), 1e-12)
    for ours, theirs in zip(grads.values(), torch.autograd.grad(expected, list(parts.values())), strict=True):
        assert_close(ours, theirs, 1e-12)


@every_head
def test_what_was_chosen_is_paid_by_its_slope(head):
    """Σ slope · log p of the ids, by autograd; its value is counted elsewhere."""
    models, ids_NK = random_pair(5, **head), torch.tensor([[0, 3], [6, 1], [2, 4], [5, 0], [1, 2]])
    slope_NK = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    slope_NK[2] = 0
    loss, grads = paid(replace(models, teacher=None), [ChosenPay(ids_NK, slope_NK)], temperature=0.6)
    parts, own = leaves(models.student)
    log_p_NV = (own.head.logits(own.hidden_NH) / 0.6).log_softmax(-1)
    expected = torch.autograd.grad((slope_NK * log_p_NV.gather(-1, ids_NK)).sum(), list(parts.values()))
    assert loss == 0
    for ours, theirs in zip(grads.values(), expected, strict=True):
        assert_close(ours, theirs, 1e-12)


def test_a_token_chosen_twice_is_paid_twice():
    models = random_pair(3)
    twice = ChosenPay(torch.tensor([[4, 4]] * 3), torch.tensor([[1.0, 0.5]] * 3))
    once = ChosenPay(torch.tensor([[4]] * 3), torch.tensor([[1.5]] * 3))
    assert_close(paid(models, [twice])[1]["hidden"], paid(models, [once])[1]["hidden"], 1e-14)


@cases("divergences")
@in_the_oracle
def test_bf16_is_no_worse_than_plain_torch(case, name):
    """The gradient in bf16 against the truth: plain torch's own error, plus a unit in bf16's last place."""
    temperature, expected = case["inputs"]["temperature"], torch.tensor(case["expected"][name]["grad"])
    models = Models(*pair(case, torch.bfloat16))
    objective = JSD(beta=float(name[4:])) if name.startswith("jsd") else OBJECTIVES[name]()
    pays = [DensePay(objective, torch.ones(len(models.student)))]
    found = paid(models, pays, temperature=temperature)[1]["hidden"]
    hidden = models.student.hidden_NH.clone().requires_grad_()
    loss = plain_loss(replace(models, student=HiddenStates(hidden, models.student.head)), pays, temperature)
    (plain,) = torch.autograd.grad(loss, hidden)
    assert found.dtype == torch.bfloat16
    assert ((found - expected).abs() <= (plain - expected).abs() + 2**-7 * expected.abs() + 1e-5).all()


def test_what_stands_in_a_row_that_pays_nothing_is_never_read():
    models, pays = mixed(20)
    nobody = ~torch.stack([pay.kept_N for pay in pays]).any(0)
    nobody[3] = True
    pays = [pay.rows(torch.arange(20)) for pay in pays]
    pays = [zeroed(pay, nobody) for pay in pays]
    expected = paid(models, pays)
    for states in (models.student, models.teacher):
        states.hidden_NH[nobody] = torch.nan
    models.weak_NH[nobody] = torch.nan
    found = paid(models, pays)
    assert torch.equal(found[0], expected[0])
    assert all(torch.equal(found[1][part], grad) for part, grad in expected[1].items())


def zeroed(pay, rows: Tensor):
    if isinstance(pay, ChosenPay):
        return replace(pay, slope_NK=pay.slope_NK.masked_fill(rows[:, None], 0))
    return replace(pay, weight_N=pay.weight_N.masked_fill(rows, 0))


def test_only_rows_that_some_term_keeps_are_computed():
    weights = torch.tensor([[1.0, 0, 0, 0, 0], [0, 0, 0, torch.nan, 0]])
    pays = [DensePay(WHOLE[0], weight_N) for weight_N in weights]
    chosen = ChosenPay(torch.zeros(5, 2, dtype=torch.long), torch.tensor([[0.0, 0], [0, -1], [0, 0], [0, 0], [0, 0]]))
    assert retained_rows([*pays, chosen], 5, torch.device("cpu")).tolist() == [0, 1, 3]
    assert retained_rows([], 5, torch.device("cpu")).tolist() == []


def test_the_pays_of_some_rows_are_theirs_alone():
    models, pays = mixed(12)
    some_n = torch.tensor([10, 1, 4, 7])
    whole = [zeroed(pay, ~torch.isin(torch.arange(12), some_n)) for pay in pays]
    few = Models(models.student.rows(some_n), models.teacher.rows(some_n), models.weak_NH[some_n])
    found, expected = paid(few, [pay.rows(some_n) for pay in pays]), paid(models, whole)
    assert_close(found[0], expected[0], 1e-13)
    for part, grad in expected[1].items():
        assert_close(found[1][part], grad[some_n] if part in ("hidden", "weak") else grad, 1e-13)


@pytest.mark.parametrize("place", ["weight", "student", "slope"])
def test_what_is_not_a_number_shows_in_loss_or_gradient(place):
    models, weight_N, slope_NK = random_pair(9), torch.ones(9), torch.ones(9, 1)
    {"weight": weight_N, "student": models.student.hidden_NH, "slope": slope_NK}[place][3] = torch.nan
    chosen = ChosenPay(torch.zeros(9, 1, dtype=torch.long), slope_NK)
    loss, grads = paid(models, [DensePay(WHOLE[0], weight_N), chosen])
    assert loss.isnan() or place == "slope"
    assert grads["hidden"].isnan().any() and grads["weight"].isnan().any()


@pytest.mark.parametrize("tile_bytes", [1, 900, 2500, 1 << 30])
def test_tiles_do_not_change_loss_or_gradient(tile_bytes):
    models, pays = mixed(23)
    loss, grads = paid(models, pays, temperature=0.5, tile_bytes=tile_bytes)
    expected, expected_grads = paid(models, pays, temperature=0.5)
    assert_close(loss, expected, 1e-12)
    for part, grad in expected_grads.items():
        assert_close(grads[part], grad, 1e-12)


@pytest.mark.parametrize("rows", [0, 5])
@pytest.mark.parametrize("terms", [0, 1, 2])
def test_an_empty_selection_pays_0_with_gradient_0(rows, terms):
    loss, grads = paid(random_pair(rows), [DensePay(WHOLE[i], torch.zeros(rows)) for i in range(terms)])
    assert loss == 0 and loss.dtype == torch.float64
    assert {part: grad.shape for part, grad in grads.items()} == {"hidden": (rows, 4), "weight": (7, 4), "bias": (7,)}
    assert not any(grad.any() for grad in grads.values())


@pytest.mark.parametrize("trained", [t for t in itertools.product([True, False], repeat=4) if any(t)], ids=str)
def test_a_frozen_part_gets_no_gradient_and_changes_no_other(trained):
    models, pays = mixed(6)
    _, expected = paid(models, pays)
    own = models.student
    inputs = (own.hidden_NH, models.weak_NH, own.head.weight_VH, own.head.bias_V)
    parts = [x.clone().requires_grad_(t) for x, t in zip(inputs, trained, strict=True)]
    hidden, weak, weight, bias = parts
    student, ids_N = HiddenStates(hidden, HeadWeights(weight, bias)), torch.zeros(6, dtype=torch.long)
    head_loss(student, models.teacher, pays, ids_N, HeadSettings(tile_bytes=TILE), weak).backward()
    for part, train, name in zip(parts, trained, ("hidden", "weak", "weight", "bias"), strict=True):
        assert torch.equal(part.grad, expected[name]) if train else part.grad is None


def test_a_weight_that_was_made_for_the_pass_is_let_go_by_its_backward():
    """An adapter's W + BA, or a part of a gathered weight, would else live to the backward's end."""
    models, pays = mixed(6)
    weight_VH, ids_N = models.student.head.weight_VH.detach().requires_grad_(), torch.zeros(6, dtype=torch.long)
    for made, kept in ((weight_VH, True), (weight_VH * 1, False)):
        student = HiddenStates(models.student.hidden_NH, HeadWeights(made, models.student.head.bias_V))
        loss = head_loss(student, models.teacher, pays, ids_N, HeadSettings(tile_bytes=TILE), models.weak_NH)
        loss.backward()
        assert (loss.grad_fn.compute is not None) is kept


def test_a_middle_layer_that_is_not_given_is_the_last_one():
    models, _ = mixed(6)
    pay = RowsPay(OBJECTIVES["uskd"](mu=0.7), torch.ones(6), torch.ones(6))
    loss, grads = paid(replace(models, weak_NH=None), [pay])
    same_loss, same = paid(replace(models, weak_NH=models.student.hidden_NH), [pay])
    assert_close(loss, same_loss, 1e-14)
    assert_close(grads["hidden"], same["hidden"] + same["weak"], 1e-14)
    assert_close(grads["weight"], same["weight"], 1e-14)


def test_the_gradient_follows_the_incoming_scale():
    models = random_pair(6)
    hidden, pays = models.student.hidden_NH.clone().requires_grad_(), [DensePay(WHOLE[0], torch.ones(6))]
    own, ids_N = HiddenStates(hidden, models.student.head), torch.zeros(6, dtype=torch.long)
    (3 * head_loss(own, models.teacher, pays, ids_N, HeadSettings())).backward()
    assert_close(hidden.grad, 3 * paid(models, pays)[1]["hidden"], 1e-14)


def test_a_head_cut_to_fewer_tokens_trains_those_alone():
    student, teacher = random_states(6, 4, 9, seed=1), random_states(6, 3, 7, seed=2)
    weight = student.head.weight_VH.clone().requires_grad_()
    own = HiddenStates(student.hidden_NH, HeadWeights(weight, student.head.bias_V).cut(7))
    ids_N = torch.zeros(6, dtype=torch.long)
    head_loss(own, teacher, [DensePay(WHOLE[0], torch.ones(6))], ids_N, HeadSettings()).backward()
    assert weight.grad[:7].any() and not weight.grad[7:].any()


def test_what_one_term_finds_infinite_costs_another_terms_row_nothing():
    """The teacher rules token 3 out: reverse KL is infinite in every row and pays in none, forward KL in row 1."""
    models, none, one = random_pair(2), torch.zeros(2), torch.tensor([0.0, 1.0])
    models.teacher.head.bias_V[3] = -torch.inf
    forward, reverse = DensePay(OBJECTIVES["forward_kl"](), one), DensePay(OBJECTIVES["reverse_kl"](), none)
    loss, grads = paid(models, [forward])
    assert loss.isfinite() and all(grad.isfinite().all() for grad in grads.values())
    again, grads_again = paid(models, [forward, reverse])
    assert_close(again, loss, 1e-13)
    assert_close(grads_again["hidden"], grads["hidden"], 1e-13)
    assert paid(models, [replace(reverse, weight_N=one)])[0].isinf()


def test_what_whole_rows_find_infinite_costs_another_terms_row_nothing():
    """The student rules token 3 out, and rows 1 and 2 sampled it; whole rows are paid elsewhere."""
    models = random_pair(4)
    for states in (models.student, models.teacher):
        states.head.bias_V[3] = -torch.inf
    models, ids_N = replace(models, weak_NH=random_states(4, 4, 7, seed=3).hidden_NH), torch.tensor([0, 3, 3, 1])
    some_N = torch.tensor([1.0, 0, 0, 0.5], dtype=torch.float64)
    pays = [
        RowsPay(OBJECTIVES["uskd"](), some_N, torch.ones(4)),
        DensePay(OBJECTIVES["reverse_kl"](teacher_top=2), 1 - some_N),
    ]
    (loss, grads), *alone = (gradient(models, each, ids_N, HeadSettings()) for each in (pays, pays[:1], pays[1:]))
    assert_close(loss, sum(part for part, _ in alone), 1e-13)
    for part, grad in grads.items():
        assert_close(grad, sum(theirs[part] for _, theirs in alone), 1e-13)


def test_end_tokens_that_no_head_has_are_refused():
    pay = DensePay(OBJECTIVES["reverse_kl"](), torch.ones(3))
    with pytest.raises(ValueError, match=r"\[9\]"):
        paid(random_pair(3), [pay], stop=(2, 9), merge_stop=True)


def test_heads_of_unequal_size_are_refused():
    models = replace(random_pair(3), teacher=random_states(3, 6, 8, seed=2))
    with pytest.raises(ValueError, match="align"):
        paid(models, [DensePay(OBJECTIVES["reverse_kl"](), torch.ones(3))])


def test_under_autocast_nothing_is_rounded():
    models, pays = mixed(6)
    expected = paid(models, pays, stop=(1, 4), merge_stop=True)
    with torch.autocast("cpu", torch.bfloat16):
        found = paid(models, pays, stop=(1, 4), merge_stop=True)
    assert torch.equal(found[0], expected[0])
    assert all(torch.equal(found[1][part], grad) for part, grad in expected[1].items())
