"""bf16 on a CPU without instructions for it: said before anything loads, from a measurement and not from a name."""

import pytest
import torch

from opd import arithmetic
from opd.arithmetic import precision_warning, product_seconds


@pytest.mark.parametrize(("ratio", "said"), [(6.4, True), (1.2, False), (0.4, False)])
def test_bf16_that_is_slower_than_fp32_is_said(ratio: float, said: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(arithmetic, "product_seconds", lambda dtype: ratio if dtype == torch.bfloat16 else 1.0)
    line = precision_warning("bf16")
    assert (line is not None) == said and (not said or "takes 6 times what it takes in fp32" in line)
    assert precision_warning("fp32") is None


def test_a_build_for_gpus_needs_no_line(monkeypatch: pytest.MonkeyPatch):
    """On a login node neither, where the job's recipe is asked about."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert precision_warning("bf16") is None


def test_products_are_really_timed():
    assert 0 < product_seconds(torch.float32) < 1
