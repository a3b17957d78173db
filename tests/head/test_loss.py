import itertools

import pytest
import torch
from torch import Tensor

from opd.head.loss import Payment, head_loss
from opd.head.weights import HeadWeights, HiddenStates
from opd.objectives import OBJECTIVES
from opd.objectives.jsd import JSD
from opd.selection import SELECTORS
from tests.build import TILE, draw, random_states, states, statistics, token_table
from tests.objectives.test_objectives import EVERY, every_objective
from tests.oracle import assert_close, both_precisions, cases

HEADS = {"plain": {}, "softcap": {"softcap": 1.5}, "scale": {"scale": 0.25}, "both": {"softcap": 2.0, "scale": 3.0}}
every_head = pytest.mark.parametrize("head", HEADS.values(), ids=HEADS.keys())
IN_THE_ORACLE = {
    "forward_kl": OBJECTIVES["forward_kl"](),
    "reverse_kl": OBJECTIVES["reverse_kl"](),
    **{f"jsd_{beta}": JSD(beta=beta) for beta in (0.1, 0.5, 0.9)},
}


def pay(
    student: HiddenStates, teacher: HiddenStates, payments: list[Payment], **settings
) -> tuple[Tensor, list[Tensor]]:
    """Loss, and its gradient with respect to hidden states, weight and (where there is one) bias."""
    head = student.head
    bias = None if head.bias_V is None else head.bias_V.detach().requires_grad_()
    weight, hidden = head.weight_VH.detach().requires_grad_(), student.hidden_NH.detach().requires_grad_()
    with_gradient = HiddenStates(hidden, HeadWeights(weight, bias, head.softcap, head.scale))
    loss = head_loss(with_gradient, teacher, payments, **{"temperature": 1.0, "tile_bytes": TILE} | settings)
    return loss.detach(), list(torch.autograd.grad(loss, [x for x in (hidden, weight, bias) if x is not None]))


def plain_loss(student: HiddenStates, teacher: HiddenStates, payments: list[Payment], temperature: float) -> Tensor:
    """The same sum by plain torch on whole logits."""
    log_ps_NV, log_pt_NV = ((s.head.logits(s.hidden_NH) / temperature).log_softmax(-1) for s in (student, teacher))
    return sum((p.objective(log_ps_NV, log_pt_NV)[0].sum(-1) * p.weight_C).sum() for p in payments)


def random_weights(rows: int, seed: int = 0) -> Tensor:
    """About a third zeros."""
    weight_C = torch.rand(rows, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.where(weight_C < 0.35, 0.0, weight_C)


@both_precisions
@cases("divergences")
@pytest.mark.parametrize("name", IN_THE_ORACLE)
def test_loss_and_gradient_of_each_token_equal_the_oracle(case, dtype, name):
    student, teacher = (states(case["inputs"][f"{who}_logits"], dtype) for who in ("student", "teacher"))
    temperature, expected = case["inputs"]["temperature"], case["expected"][name]
    for i, one in enumerate(torch.eye(len(student), dtype=dtype)):
        loss, (grad_NV, *_) = pay(student, teacher, [Payment(IN_THE_ORACLE[name], one)], temperature=temperature)
        assert_close(loss, expected["loss"][i])
        assert_close(grad_NV[i], expected["grad"][i])
        assert grad_NV.count_nonzero(dim=-1).count_nonzero() <= 1


@cases("divergences")
@pytest.mark.parametrize("name", IN_THE_ORACLE)
def test_bf16_is_no_worse_than_plain_torch(case, name):
    """The gradient in bf16 against the truth: plain torch's own error, plus a unit in bf16's last place."""
    temperature, expected = case["inputs"]["temperature"], torch.tensor(case["expected"][name]["grad"])
    student, teacher = (states(case["inputs"][f"{who}_logits"], torch.bfloat16) for who in ("student", "teacher"))
    payments = [Payment(IN_THE_ORACLE[name], torch.ones(len(student)))]
    _, (found, *_) = pay(student, teacher, payments, temperature=temperature)
    hidden = student.hidden_NH.clone().requires_grad_()
    (plain,) = torch.autograd.grad(
        plain_loss(HiddenStates(hidden, student.head), teacher, payments, temperature), hidden
    )
    assert found.dtype == torch.bfloat16
    assert ((found - expected).abs() <= (plain - expected).abs() + 2**-7 * expected.abs() + 1e-5).all()


@both_precisions
@cases("tip")
def test_tip_pays_the_mean_reverse_kl_of_its_tokens(case, dtype):
    given, counted = case["inputs"], torch.tensor(case["inputs"]["mask"]) > 0
    student, teacher = (states(torch.tensor(given[f"{who}_logits"])[counted], dtype) for who in ("student", "teacher"))
    rollout_T = torch.repeat_interleave(torch.arange(len(given["lengths"])), torch.tensor(given["lengths"]))
    lengths = torch.bincount(rollout_T[counted], minlength=len(given["lengths"])).tolist()
    table = token_table(lengths, statistics(student, teacher))
    for expected in case["expected"]["loss_soft_or_batch"]:
        weight_C = SELECTORS["soft_or"](keep=expected["rho"]).weights(table, draw)
        payment = Payment(OBJECTIVES["reverse_kl"](), weight_C / weight_C.sum())
        loss, (grad_CV, *_) = pay(student, teacher, [payment])
        grad_TV = torch.zeros(len(counted), grad_CV.shape[1], dtype=dtype)
        grad_TV[counted] = grad_CV
        assert int(weight_C.sum()) == expected["retained"]
        assert_close(loss, expected["value"])
        assert_close(grad_TV, expected["grad"])


@every_head
@every_objective
def test_gradients_of_states_weight_and_bias_pass_gradcheck(objective, head):
    student, teacher = random_states(4, 3, 5, seed=1, **head), random_states(4, 2, 5, seed=2)
    payments = [Payment(objective, random_weights(4, 3)), Payment(OBJECTIVES["reverse_kl"](), random_weights(4, 4))]

    def loss(hidden, weight, bias):
        own = HiddenStates(hidden, HeadWeights(weight, bias, **head))
        return head_loss(own, teacher, payments, temperature=0.7, tile_bytes=1)

    inputs = (student.hidden_NH, student.head.weight_VH, student.head.bias_V)
    assert torch.autograd.gradcheck(loss, [x.clone().requires_grad_() for x in inputs])


@every_head
def test_the_loss_is_the_plain_sum_over_terms_and_tokens(head):
    student, teacher = random_states(9, 4, 7, seed=1, **head), random_states(9, 6, 7, seed=2, **head)
    payments = [Payment(objective, random_weights(9, i)) for i, objective in enumerate(EVERY)]
    loss, grads = pay(student, teacher, payments, temperature=1.7)
    inputs = [x.clone().requires_grad_() for x in (student.hidden_NH, student.head.weight_VH, student.head.bias_V)]
    expected = plain_loss(HiddenStates(inputs[0], HeadWeights(*inputs[1:], **head)), teacher, payments, 1.7)
    assert_close(loss, expected.detach(), 1e-12)
    for ours, theirs in zip(grads, torch.autograd.grad(expected, inputs), strict=True):
        assert_close(ours, theirs, 1e-12)


@every_objective
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_student_equal_to_teacher_pays_nothing(objective, temperature):
    student = random_states(6, 4, 9, seed=1, softcap=4.0)
    loss, grads = pay(student, student, [Payment(objective, torch.ones(6))], temperature=temperature)
    assert abs(loss) < 1e-13
    assert max(grad.abs().max() for grad in grads) < 1e-14


@every_objective
def test_weight_0_is_a_row_that_is_not_there(objective):
    student, teacher, weight_C = random_states(9, 4, 7, seed=1), random_states(9, 6, 7, seed=2), random_weights(9)
    kept = weight_C > 0
    loss, grads = pay(student, teacher, [Payment(objective, weight_C)])
    fewer = [HiddenStates(s.hidden_NH[kept], s.head) for s in (student, teacher)]
    few_loss, few_grads = pay(*fewer, [Payment(objective, weight_C[kept])])
    assert not grads[0][~kept].any()
    for ours, theirs in zip([loss, grads[0][kept], *grads[1:]], [few_loss, *few_grads], strict=True):
        assert torch.equal(ours, theirs)


def test_what_stands_in_a_row_of_weight_0_is_never_read():
    student, teacher, weight_C = random_states(9, 4, 7, seed=1), random_states(9, 6, 7, seed=2), random_weights(9)
    expected = pay(student, teacher, [Payment(EVERY[0], weight_C)])
    for s in (student, teacher):
        s.hidden_NH[weight_C == 0] = torch.nan
    found = pay(student, teacher, [Payment(EVERY[0], weight_C)])
    assert torch.equal(found[0], expected[0]) and all(map(torch.equal, found[1], expected[1]))


@pytest.mark.parametrize("place", ["weight", "student"])
def test_what_is_not_a_number_shows_in_the_loss(place):
    student, teacher, weight_C = random_states(9, 4, 7, seed=1), random_states(9, 6, 7, seed=2), torch.ones(9)
    (weight_C if place == "weight" else student.hidden_NH)[3] = torch.nan
    loss, _ = pay(student, teacher, [Payment(EVERY[0], weight_C)])
    assert loss.isnan()


@pytest.mark.parametrize("tile_bytes", [1, 900, 2500, 1 << 30])
def test_tiles_do_not_change_loss_or_gradient(tile_bytes):
    student, teacher = random_states(23, 4, 7, seed=1, softcap=3.0), random_states(23, 6, 7, seed=2)
    payments = [Payment(objective, random_weights(23, i)) for i, objective in enumerate(EVERY[:2])]
    loss, grads = pay(student, teacher, payments, temperature=0.5, tile_bytes=tile_bytes)
    expected, expected_grads = pay(student, teacher, payments, temperature=0.5)
    for ours, theirs in zip([loss, *grads], [expected, *expected_grads], strict=True):
        assert_close(ours, theirs, 1e-12)


@pytest.mark.parametrize("rows", [0, 5])
@pytest.mark.parametrize("terms", [0, 1, 2])
def test_an_empty_selection_pays_0_with_gradient_0(rows, terms):
    student, teacher = random_states(rows, 4, 7, seed=1), random_states(rows, 6, 7, seed=2)
    loss, grads = pay(student, teacher, [Payment(EVERY[i], torch.zeros(rows)) for i in range(terms)])
    assert loss == 0 and loss.dtype == torch.float64
    assert [grad.shape for grad in grads] == [(rows, 4), (7, 4), (7,)]
    assert not any(grad.any() for grad in grads)


@pytest.mark.parametrize("trained", [t for t in itertools.product([True, False], repeat=3) if any(t)], ids=str)
def test_a_frozen_part_gets_no_gradient_and_changes_no_other(trained):
    student, teacher = random_states(6, 4, 7, seed=1), random_states(6, 3, 7, seed=2)
    payments = [Payment(EVERY[0], random_weights(6))]
    _, expected = pay(student, teacher, payments)
    inputs = [student.hidden_NH, student.head.weight_VH, student.head.bias_V]
    hidden, weight, bias = parts = [x.clone().requires_grad_(t) for x, t in zip(inputs, trained, strict=True)]
    head_loss(
        HiddenStates(hidden, HeadWeights(weight, bias)), teacher, payments, temperature=1.0, tile_bytes=TILE
    ).backward()
    for part, train, grad in zip(parts, trained, expected, strict=True):
        assert torch.equal(part.grad, grad) if train else part.grad is None


def test_the_gradient_follows_the_incoming_scale():
    student, teacher = random_states(6, 4, 7, seed=1), random_states(6, 3, 7, seed=2)
    hidden = student.hidden_NH.clone().requires_grad_()
    payments = [Payment(EVERY[0], torch.ones(6))]
    loss = head_loss(HiddenStates(hidden, student.head), teacher, payments, temperature=1.0, tile_bytes=TILE)
    (3 * loss).backward()
    assert_close(hidden.grad, 3 * pay(student, teacher, payments)[1][0], 1e-14)


def test_a_head_cut_to_fewer_tokens_trains_those_alone():
    student, teacher = random_states(6, 4, 9, seed=1), random_states(6, 3, 7, seed=2)
    weight = student.head.weight_VH.clone().requires_grad_()
    own = HiddenStates(student.hidden_NH, HeadWeights(weight, student.head.bias_V).cut(7))
    head_loss(own, teacher, [Payment(EVERY[0], torch.ones(6))], temperature=1.0, tile_bytes=TILE).backward()
    assert weight.grad[:7].any() and not weight.grad[7:].any()
