"""What this machine multiplies slowly: bf16 on a CPU that has no instructions for it."""

from __future__ import annotations

import time

import torch
from torch.nn.functional import linear

SLOWER = 1.5
"""From this ratio on, a product in bf16 beside one in fp32 is worth a line."""


def precision_warning(precision: str) -> str | None:
    """A line for bf16 on a CPU where it costs more than fp32: without AVX-512 BF16, AMX or Arm's BF16, say."""
    if precision != "bf16" or torch.version.cuda:
        return None
    ratio = product_seconds(torch.bfloat16) / product_seconds(torch.float32)
    if ratio < SLOWER:
        return None
    return (
        f"warning: this CPU has no fast bf16: a matrix product takes {ratio:.0f} times what it takes in fp32; set "
        "precision to fp32, which takes twice the memory"
    )


def product_seconds(dtype: torch.dtype, *, repeats: int = 5) -> float:
    """Seconds of the fastest of some [64, 512] × [512, 512] products: 0.3 ms at 100 GFLOP/s."""
    rows, weight = torch.ones(64, 512, dtype=dtype), torch.ones(512, 512, dtype=dtype)
    taken = []
    for _ in range(repeats):
        began = time.perf_counter()
        linear(rows, weight)
        taken.append(time.perf_counter() - began)
    return min(taken)
