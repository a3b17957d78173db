"""Where gradients add up: slab after slab, part after part, and into the weight's own dtype at the end."""

import pytest
import torch

from opd.head.gradient import Gradients, Slab, narrowed_
from opd.head.shard import whole_of
from opd.head.weights import HeadWeights, HiddenStates
from tests.build import random_states
from tests.oracle import assert_close

N, H, V = 6, 4, 9
ALL = (True, True, True, True)


def gradients(dtype: torch.dtype = torch.float64, wants: tuple[bool, ...] = ALL) -> Gradients:
    made = random_states(N, H, V, seed=1)
    head = HeadWeights(made.head.weight_VH.to(dtype), made.head.bias_V.to(dtype))
    weak_NH = random_states(N, H, V, seed=2).hidden_NH.to(dtype)
    return Gradients(HiddenStates(made.hidden_NH.to(dtype), head), weak_NH, wants, whole_of(head))


def collected(found: Gradients) -> list:
    """As the backward gives them, of an incoming 1."""
    dtype = found.head.weight_VH.dtype
    return [None if part is None else narrowed_(part, dtype) for part in found.collected()]


def grad_NV() -> torch.Tensor:
    return random_states(N, V, V, seed=3).hidden_NH


@pytest.mark.parametrize("cut", [[6], [2, 3, 1], [1] * 6], ids=str)
def test_slabs_add_up_to_the_matrix_products(cut):
    found, logits_NV = gradients(), grad_NV()
    for rows_n in torch.arange(N).split(cut):
        found.add_rows(rows_n, logits_NV[rows_n])
    hidden, weak, weight, bias = collected(found)
    assert_close(hidden, logits_NV @ found.head.weight_VH, 1e-13)
    assert_close(weight, logits_NV.T @ found.student.hidden_NH, 1e-13)
    assert_close(bias, logits_NV.sum(0), 1e-13)
    assert not weak.any()


def test_a_middle_layers_rows_train_its_states_and_the_same_head():
    found, logits_NV = gradients(), grad_NV()
    weak_NH = random_states(N, H, V, seed=2).hidden_NH
    found.add_rows(torch.arange(N), logits_NV)
    found.add_rows(torch.arange(N), logits_NV, weak_NH=weak_NH)
    hidden, weak, weight, bias = collected(found)
    assert_close(weak, logits_NV @ found.head.weight_VH, 1e-13)
    assert_close(hidden, weak, 1e-13)
    assert_close(weight, logits_NV.T @ (found.student.hidden_NH + weak_NH), 1e-13)
    assert_close(bias, 2 * logits_NV.sum(0), 1e-13)


def test_a_few_tokens_are_added_to_columns_that_are_there():
    found, logits_NV = gradients(), grad_NV()
    ids, rows_n = [7, 2], torch.tensor([4, 1])
    slab = Slab(found, rows_n, found.student.hidden_NH[rows_n], found.hidden_NH)
    slab.add(slice(0, V), logits_NV[rows_n].index_fill(1, torch.tensor(ids), 0).T)
    slab.add_tokens(ids, logits_NV[rows_n][:, ids])
    slab.close()
    hidden, _, weight, bias = collected(found)
    assert_close(hidden[rows_n], logits_NV[rows_n] @ found.head.weight_VH, 1e-13)
    assert not hidden[[0, 2, 3, 5]].any()
    assert_close(weight, logits_NV[rows_n].T @ found.student.hidden_NH[rows_n], 1e-13)
    assert_close(bias, logits_NV[rows_n].sum(0), 1e-13)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_every_part_comes_in_its_own_dtype_and_is_summed_in_a_wider_one(dtype):
    """A thousand times a thousandth is 1; summed in bfloat16 it would stop at a half."""
    found, logits_NV = gradients(dtype), torch.full((N, V), 1e-3, dtype=max(dtype, torch.float32, key=_bits))
    for _ in range(1000):
        found.add_rows(torch.arange(1), logits_NV[:1])
    assert found.weight_VH.dtype == logits_NV.dtype
    parts = collected(found)
    assert {part.dtype for part in parts} == {dtype}
    assert_close(parts[-1], torch.ones(V), 1e-2)
    assert_close(parts[2][0], found.student.hidden_NH[0].double(), 1e-2)


def _bits(dtype: torch.dtype) -> int:
    return torch.finfo(dtype).bits


@pytest.mark.parametrize("wants", [tuple(i == part for i in range(4)) for part in range(4)], ids=str)
def test_a_part_that_is_not_wanted_is_none(wants):
    found = gradients(wants=wants)
    found.add_rows(torch.arange(N), grad_NV())
    assert [part is not None for part in collected(found)] == list(wants)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_without_a_row_every_part_is_0(dtype):
    """The weight's memory is not even cleared before it is needed."""
    found = gradients(dtype)
    found.weight_VH.fill_(torch.nan)
    assert not any(part.any() for part in collected(found))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("shape", [(3,), (1, 1), (9000, 3), (4096, 5), (4097, 7), (0, 4)], ids=str)
def test_a_sum_narrowed_in_place_is_what_to_gives(shape, dtype):
    sum_ = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    expected, memory = sum_.to(dtype), sum_.data_ptr()
    found = narrowed_(sum_, dtype)
    assert found.dtype == dtype and torch.equal(found, expected)
    assert found.data_ptr() == memory and found.is_contiguous()
