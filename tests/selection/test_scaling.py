import numpy as np
import pytest
import torch

from opd.selection.scaling import clip_at_quantile, min_max


@pytest.mark.parametrize("n", [1, 2, 3, 50, 51, 101])
@pytest.mark.parametrize("q", [1e-9, 0.5, 0.98, 1.0])
def test_the_clip_is_numpys_linear_quantile(n, q):
    x_C = torch.randn(n, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    expected = np.minimum(x_C.numpy(), np.quantile(x_C.numpy(), q))
    np.testing.assert_allclose(clip_at_quantile(x_C, q).numpy(), expected, rtol=0, atol=1e-14)


def test_min_max_spans_0_to_1_and_keeps_the_order():
    x_C = torch.tensor([2.0, 7.0, -3.0, 4.5])
    torch.testing.assert_close(min_max(x_C), torch.tensor([0.5, 1.0, 0.0, 0.75]))


@pytest.mark.parametrize("x", [[], [3.0], [0.0, 0.0], [1e30, 1e30, 1e30]])
def test_min_max_of_one_value_is_0(x):
    assert min_max(torch.tensor(x)).tolist() == [0.0] * len(x)


def test_the_clip_of_nothing_is_nothing():
    assert clip_at_quantile(torch.zeros(0), 0.98).tolist() == []


def test_a_nan_is_never_scaled_away():
    assert min_max(torch.tensor([1.0, torch.nan, 2.0])).isnan().all()
    assert clip_at_quantile(torch.tensor([1.0, torch.nan, 2.0]), 0.5).isnan().any()


def test_neither_changes_its_input():
    x_C = torch.tensor([1.0, 5.0, 3.0])
    min_max(x_C), clip_at_quantile(x_C, 0.5)
    assert x_C.tolist() == [1.0, 5.0, 3.0]
