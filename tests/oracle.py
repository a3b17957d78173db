"""The golden vectors of tests/oracles (see its README), and the tolerance that they are held to."""

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}
both_precisions = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])


@functools.cache
def oracle(name: str) -> list[dict[str, Any]]:
    """The cases of tests/oracles/<name>.json."""
    return json.loads((Path(__file__).parent / "oracles" / f"{name}.json").read_text())["cases"]


def cases(name: str) -> pytest.MarkDecorator:
    """Parametrizes a test's `case` over the cases of a file."""
    return pytest.mark.parametrize("case", oracle(name), ids=lambda case: case["name"])


def assert_close(actual: Tensor, expected: Any, tolerance: float | None = None) -> None:
    """Equal to tolerance · max(1, |expected|), elementwise; the dtype's tolerance by default."""
    tolerance = TOLERANCE[actual.dtype] if tolerance is None else tolerance
    expected = torch.as_tensor(expected, dtype=torch.float64)
    assert actual.shape == expected.shape
    error = (actual.double() - expected).abs() / expected.abs().clamp_min(1)
    assert not error.numel() or error.max() <= tolerance, f"off by {float(error.max()):.2e}, allowed {tolerance:.0e}"
