"""How the elementwise work of a block runs: as plain torch, the reference, or fused by `torch.compile`.

Plain torch goes over a block about twenty times. Fused (C++ on a CPU, Triton on CUDA) it is read once or twice and
written once, however many the terms, and 16-bit products are never copied to float32. A work is compiled when it first
meets a block, once for all sizes; where that fails it runs plain from then on, and one line says so.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from opd.errors import reason_of

Given = dict[str, Tensor]
"""What a work reads or gives, by name: first a block [n, b] that lies in memory as [b, n], then such blocks or [n]."""
Work = Callable[[Given], Given]
"""A function of tensors alone, equal to another that computes the same; it may write to a block as its last act."""
MOST_KERNELS = 16
"""Works that are compiled in a process at most: a number that moves with progress makes a new one in each step."""
KERNELS: dict[tuple, Work] = {}
"""What was compiled so far, by work and dtypes; the work itself where that failed."""
SAID: set[str] = set()
"""Why something runs plain, each told once: a compiler forgets what Python has warned of."""


def run(work: Work, given: Given, *, fuse: bool) -> Given:
    """What the work gives; blocks of one row or column are not worth a kernel of their own."""
    if not fuse or min(next(iter(given.values())).shape) < 2:
        return work(given)
    key = (work, *((name, x.dtype, x.device) for name, x in given.items()))
    if key not in KERNELS:
        KERNELS[key] = _first(work, given)
    return KERNELS[key](given)


def forget() -> None:
    """As in a new process."""
    KERNELS.clear()
    SAID.clear()


def _first(work: Work, given: Given) -> Work:
    """The work compiled, or as it is, with a warning. It is tried on zeros, so that a failure has touched nothing."""
    if len(KERNELS) >= MOST_KERNELS:
        return _plain(work, f"{MOST_KERNELS} are compiled; does a number of the loss move with progress?")
    try:
        kernel = Kernel(work, given)
        kernel.fused(_zeros(given, *_unequal(next(iter(given.values())))))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a compiler meets, plain torch goes on
        return _plain(work, f"{type(error).__name__}: {reason_of(error)}")
    return kernel


def _plain(work: Work, reason: str) -> Work:
    if reason not in SAID:
        SAID.add(reason)
        warnings.warn(f"head_kernels: plain torch instead of a fused kernel: {reason}", stacklevel=2)
    return work


class Kernel:
    """A work, compiled for blocks of any size from 2 × 2 on."""

    def __init__(self, work: Work, given: Given) -> None:
        self.work, self.found = work, []
        self._compiled = torch.compile(self._traced(given), dynamic=True, fullgraph=True)

    def __call__(self, given: Given) -> Given:
        try:
            return self.fused(given)
        except (torch._dynamo.exc.TorchDynamoException, torch._dynamo.exc.FailOnRecompileLimitHit) as error:
            # another size asked for another compilation, or for one too many
            KERNELS.update({key: self.work for key, kernel in KERNELS.items() if kernel is self})
            return _plain(self.work, f"{type(error).__name__}: {reason_of(error)}")(given)

    def fused(self, given: Given) -> Given:
        """What the work gives; raises whatever the compiler does."""
        found = self._compiled(*map(_as_it_lies, given.values()))
        return dict(zip(self.found, found, strict=True))

    def _traced(self, given: Given) -> torch.fx.GraphModule:
        """Its operations alone: no compiler need understand objectives, records and what checks shapes in tests."""
        from torch.fx.experimental.proxy_tensor import make_fx  # takes half a second that plain torch need not wait

        def flat(*tensors: Tensor) -> tuple[Tensor, ...]:
            found = self.work(dict(zip(given, (x.t() for x in tensors), strict=True)))
            self.found = list(found)
            return tuple(found.values())

        few = _zeros(given, rows=5, columns=7)
        return make_fx(flat, tracing_mode="symbolic")(*(x.t() for x in few.values()))


def _as_it_lies(tensor: Tensor) -> Tensor:
    """A block as [b, n], the same memory under a tensor of its own: where a view begins would count as a new size."""
    return tensor if tensor.ndim == 1 else torch.from_dlpack(tensor.t())


def _unequal(block_nb: Tensor) -> tuple[int, int]:
    """Its rows and columns, a row more where both are equal: the compiler would take them for one size for ever."""
    rows, columns = block_nb.shape
    return rows + (rows == columns), columns


def _zeros(given: Given, rows: int, columns: int) -> Given:
    shaped = {name: x.new_zeros((columns, rows)[2 - x.ndim :]) for name, x in given.items()}
    return {name: x if x.ndim == 1 else x.t() for name, x in shaped.items()}
