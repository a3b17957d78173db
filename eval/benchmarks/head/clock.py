"""Wall time of a call, with the device's work."""

import time
from collections.abc import Callable

import torch


def seconds_of(call: Callable[[], object], device: torch.device) -> float:
    """From a device that is idle to one that is idle again."""
    _settle(device)
    start = time.perf_counter()
    call()
    _settle(device)
    return time.perf_counter() - start


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
