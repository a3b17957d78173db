"""The likeliest outcomes of a row."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from opd.head.tile import top


@pytest.mark.parametrize("levels", [1, 2, 5, 1000])
@pytest.mark.parametrize("k", [1, 3, 40, 50])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_the_likeliest_come_highest_first_and_ties_go_to_the_lower_id(dtype, k, levels):
    generator = torch.Generator().manual_seed(0)
    logits_nV = torch.randint(levels, (30, 40), generator=generator).sub(levels // 2).to(dtype)
    expected = logits_nV.sort(dim=-1, descending=True, stable=True).indices[:, :k]
    assert torch.equal(top(logits_nV, k), expected)
    assert torch.equal(top(logits_nV.T.contiguous().T, k), expected)


def test_no_shape_follows_from_numbers_for_which_a_gpu_would_be_waited_for():
    with FakeTensorMode():
        assert top(torch.empty(3, 9), 2).shape == (3, 2)
