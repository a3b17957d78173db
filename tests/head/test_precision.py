"""Heads of 16 bits: how far loss and gradient are from the truth, which is float64 over the very same numbers."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from opd.head.pay import DensePay
from opd.head.settings import HeadSettings
from opd.head.statistics import row_statistics, with_normalisers
from opd.head.weights import HeadWeights, HiddenStates
from opd.objectives import OBJECTIVES
from opd.objectives.base import DenseObjective, LogProbs
from tests.build import Models, gradient, leaves

N, H, V = 48, 64, 1500
IDS_N, EVEN_N = torch.zeros(N, dtype=torch.long), torch.full((N,), 1 / N, dtype=torch.float64)
FEW_N = EVEN_N * (torch.arange(N) % 3 == 0)
TILE = 1 << 18
"""Several strips and slabs."""
DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16}
every_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
every_objective = pytest.mark.parametrize("name", ["reverse_kl", "forward_kl", "jsd", "entropy", "skew_kl"])
EXACT = 3e-3
"""A gradient is rounded to the weight's dtype: 1.5e-3 of its norm in bfloat16."""


def models(dtype: torch.dtype) -> tuple[HiddenStates, HiddenStates]:
    """A teacher that resembles its student; logits spread by about 3."""
    generator = torch.Generator().manual_seed(0)
    hidden_NH, weight_VH, other_NH, other_VH = (
        torch.randn(size, H, generator=generator, dtype=torch.float64) for size in (N, V, N, V)
    )
    student = HiddenStates(hidden_NH.to(dtype), HeadWeights((weight_VH * 3 / 8).to(dtype)))
    teacher_NH, teacher_VH = hidden_NH + other_NH / 2, (weight_VH + other_VH / 2) * 3 / 8
    return student, HiddenStates(teacher_NH.to(dtype), HeadWeights(teacher_VH.to(dtype)))


def cast(states: HiddenStates, dtype: torch.dtype) -> HiddenStates:
    return HiddenStates(states.hidden_NH.to(dtype), HeadWeights(states.head.weight_VH.to(dtype)))


def plain(
    objective: DenseObjective,
    student: HiddenStates,
    teacher: HiddenStates,
    dtype: torch.dtype,
    weight_N: Tensor = EVEN_N,
) -> list[Tensor]:
    """Loss and gradients by plain torch: logits multiplied in `dtype`, log-softmax in float32 or better."""
    parts, own = leaves(cast(student, dtype))
    logits = [s.hidden_NH @ s.head.weight_VH.T for s in (own, cast(teacher, dtype))]
    log_p = [LogProbs((x if dtype == torch.float64 else x.float()).log_softmax(-1)) for x in logits]
    loss = (objective(*log_p)[0].sum(-1) * weight_N.to(log_p[0].log_nO)).sum()
    return [loss.detach(), *torch.autograd.grad(loss, list(parts.values()))]


def known_of(objective: DenseObjective, student: HiddenStates, teacher: HiddenStates, **settings) -> dict[str, Tensor]:
    """What a pass before finds that the objective sums."""
    settings = HeadSettings(tile_bytes=TILE, **settings)
    return row_statistics(with_normalisers({objective.sums}), student, teacher, IDS_N, settings)


def ours(
    objective: DenseObjective, student, teacher, *, is_known: bool = False, known=None, weight_N=EVEN_N, **settings
) -> list[Tensor]:
    """The same by the head, after a pass that found `known`, or what it does find."""
    known = known_of(objective, student, teacher, **settings) if is_known else known
    settings = HeadSettings(tile_bytes=TILE, **settings)
    loss, grads = gradient(Models(student, teacher), [DensePay(objective, weight_N)], IDS_N, settings, known)
    return [loss, *grads.values()]


def errors(found: list[Tensor], truth: list[Tensor]) -> list[float]:
    """Of each part, relative to its norm."""
    return [float((x.double() - y).norm() / y.norm()) for x, y in zip(found, truth, strict=True)]


@every_dtype
@every_objective
def test_exact_gradients_are_the_truth_rounded_once(name, dtype):
    objective, pair = OBJECTIVES[name](), models(dtype)
    truth = plain(objective, *pair, torch.float64)
    found, theirs = (errors(x, truth) for x in (ours(objective, *pair), plain(objective, *pair, dtype)))
    assert found[0] < 1e-5 and max(found[1:]) <= EXACT
    assert all(our <= their for our, their in zip(found, theirs, strict=True))


@every_dtype
@pytest.mark.parametrize("name", ["reverse_kl", "forward_kl", "entropy"])
def test_exact_gradients_with_known_sums_are_too(name, dtype):
    objective, pair = OBJECTIVES[name](), models(dtype)
    found = errors(ours(objective, *pair, is_known=True), plain(objective, *pair, torch.float64))
    assert found[0] < 1e-5 and max(found[1:]) <= EXACT


@every_objective
def test_fast_gradients_are_as_good_as_plain_torchs(name):
    objective, pair = OBJECTIVES[name](), models(torch.bfloat16)
    truth = plain(objective, *pair, torch.float64)
    found = errors(ours(objective, *pair, precision="fast"), truth)
    theirs = errors(plain(objective, *pair, torch.bfloat16), truth)
    assert all(our <= 1.1 * their for our, their in zip(found[1:], theirs[1:], strict=True))


@pytest.mark.parametrize("weight_N", [EVEN_N, FEW_N], ids=["all", "few"])
@pytest.mark.parametrize("name", ["reverse_kl", "forward_kl", "entropy"])
def test_fast_gradients_with_known_sums_of_all_rows_are_too(name, weight_N):
    objective, pair = OBJECTIVES[name](), models(torch.bfloat16)
    truth = plain(objective, *pair, torch.float64, weight_N)
    found = errors(ours(objective, *pair, is_known=True, weight_N=weight_N, precision="fast"), truth)
    theirs = errors(plain(objective, *pair, torch.bfloat16, weight_N), truth)
    assert all(our <= 1.1 * their for our, their in zip(found[1:], theirs[1:], strict=True))


@pytest.mark.parametrize(("precision", "is_lost"), [("fast", False), ("exact", True)])
def test_a_product_that_is_rounded_the_other_way_costs_no_loss(precision, is_lost):
    """A row whose probabilities sum to 1 / 1.1: of rounded products that may be, of others it may not."""
    objective, pair = OBJECTIVES["reverse_kl"](), models(torch.bfloat16)
    known = known_of(objective, *pair, precision=precision)
    known["student_normaliser"][5] += math.log(1.1)
    assert bool(ours(objective, *pair, known=known, precision=precision)[0].isnan()) == is_lost


def test_known_sums_of_other_states_give_no_loss_in_fast_either():
    objective, (student, teacher) = OBJECTIVES["reverse_kl"](), models(torch.bfloat16)
    known = known_of(objective, replace(student, hidden_NH=1.5 * student.hidden_NH), teacher, precision="fast")
    assert ours(objective, student, teacher, known=known, precision="fast")[0].isnan()


@pytest.mark.parametrize(("precision", "device"), [("fast", "cpu"), ("exact", "cuda")])
def test_a_float16_head_is_refused_where_its_gradient_would_be_cast_to_that(precision, device):
    """Over 65,536 tokens a logit's is 1.5e-5 at most, and of a probability of 0.1 % it is nothing in float16."""
    with FakeTensorMode():
        weight_VH = torch.empty(2, 2, dtype=torch.float16, device=device)
    with pytest.raises(ValueError, match="vanish"):
        HeadSettings(precision=precision).check_trainable(weight_VH)


def test_a_loss_refuses_such_a_head_and_statistics_take_it():
    objective, pair = OBJECTIVES["reverse_kl"](), models(torch.float16)
    assert known_of(objective, *pair, precision="fast")["reverse_kl"].isfinite().all()
    with pytest.raises(ValueError, match="float16"):
        ours(objective, *pair, precision="fast")


def test_fast_rounds_products_and_exact_does_not():
    objective, pair = OBJECTIVES["reverse_kl"](), models(torch.bfloat16)
    exact, fast = ours(objective, *pair), ours(objective, *pair, precision="fast")
    assert all(grad.dtype == torch.bfloat16 for grad in exact[1:] + fast[1:])
    assert not torch.equal(exact[1], fast[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@every_objective
@pytest.mark.parametrize("is_known", [False, True])
def test_fast_is_nothing_to_heads_of_32_bits_and_more(name, is_known, dtype):
    objective, pair = OBJECTIVES[name](), models(dtype)
    is_known = is_known and objective.sums is not None
    exact, fast = (ours(objective, *pair, is_known=is_known, precision=p) for p in ("exact", "fast"))
    assert all(torch.equal(x, y) for x, y in zip(exact, fast, strict=True))


@every_dtype
def test_exact_statistics_are_those_of_the_truth(dtype):
    names, (student, teacher) = ["student_entropy", "teacher_entropy", "reverse_kl", "forward_kl"], models(dtype)
    double = [cast(s, torch.float64) for s in (student, teacher)]
    found, truth = (row_statistics(names, *s, IDS_N, HeadSettings()) for s in ((student, teacher), double))
    for name in names:
        torch.testing.assert_close(found[name].double(), truth[name], rtol=1e-5, atol=1e-6)
