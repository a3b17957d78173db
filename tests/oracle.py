"""The golden vectors (see the README of tests/oracles), and the tolerance that they are held to.

The environment variable OPD_ORACLES names another folder of the same files: nothing here or in a test knows how many
cases there are, or what they are called.
"""

import functools
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from opd.batch import TokenTable
from opd.head.weights import HiddenStates
from tests.build import states, token_table

FOLDER = Path(os.environ.get("OPD_ORACLES") or Path(__file__).parent / "oracles")
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}
both_precisions = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])
Case = dict[str, Any]


@functools.cache
def oracle(name: str) -> list[Case]:
    """The cases of <name>.json."""
    return json.loads((FOLDER / f"{name}.json").read_text())["cases"]


def cases(name: str, *kinds: str) -> pytest.MarkDecorator:
    """Parametrizes a test's `case` over the cases of a file, of those kinds or all; none skips the test."""
    chosen = [case for case in oracle(name) if not kinds or case["kind"] in kinds]
    return pytest.mark.parametrize("case", chosen, ids=lambda case: case["name"])


def counted(case: Case) -> Tensor:
    """Positions of the case whose mask is 1; all of them where there is no mask."""
    given = case["inputs"]
    return torch.tensor(given.get("mask", [1] * len(given["student_logits"]))).nonzero().squeeze(-1)


def logits(case: Case, who: str, dtype: torch.dtype) -> HiddenStates:
    """States of the counted positions whose logits are the case's `<who>_logits`."""
    return states(torch.tensor(case["inputs"][f"{who}_logits"], dtype=dtype)[counted(case)], dtype)


def pair(case: Case, dtype: torch.dtype) -> tuple[HiddenStates, HiddenStates]:
    """Student and teacher of the counted positions."""
    return logits(case, "student", dtype), logits(case, "teacher", dtype)


def table_of(case: Case, **columns: Tensor) -> TokenTable:
    """The counted positions as a table, one rollout where the case knows no lengths; `columns` are statistics."""
    given, rows = case["inputs"], counted(case)
    lengths = torch.tensor(given.get("lengths", [len(given["student_logits"])]))
    rollout_T = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    ids = given.get("token_ids", given.get("targets"))
    return token_table(
        torch.bincount(rollout_T[rows], minlength=len(lengths)).tolist(),
        columns,
        token_id_C=None if ids is None else torch.tensor(ids)[rows],
    )


def spread(value_C: Tensor, case: Case) -> Tensor:
    """Values of the counted positions as values of all positions; 0 at the others."""
    total = len(case["inputs"]["student_logits"])
    return value_C.new_zeros(total, *value_C.shape[1:]).index_copy(0, counted(case), value_C)


def assert_close(actual: Tensor | float, expected: Any, tolerance: float | None = None) -> None:
    """Equal to tolerance · max(1, |expected|), elementwise; the dtype's tolerance by default."""
    actual = torch.as_tensor(actual, dtype=None if isinstance(actual, Tensor) else torch.float64)
    tolerance = TOLERANCE[actual.dtype] if tolerance is None else tolerance
    expected = torch.as_tensor(expected, dtype=torch.float64)
    assert actual.shape == expected.shape
    error = (actual.double() - expected).abs() / expected.abs().clamp_min(1)
    assert not error.numel() or error.max() <= tolerance, f"off by {float(error.max()):.2e}, allowed {tolerance:.0e}"
