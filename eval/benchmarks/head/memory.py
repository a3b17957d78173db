"""Peak extra memory of a contender: how far a process of its own grows beyond its inputs, loss and backward together.

On the CPU the peak of resident memory (VmHWM, set back before the call; a thread that polls where the kernel refuses
that), after a call on a few rows that loads the libraries (on all where it compiles); on CUDA what the allocator held
at most.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import torch

from eval.benchmarks.head.cases import Case, Shape
from eval.benchmarks.head.contenders import CONTENDERS
from eval.benchmarks.head.rounds import call_of
from opd.metrics import reset_resident_peak, resident_peak

ROOT = Path(__file__).resolve().parents[3]
PAGE = os.sysconf("SC_PAGE_SIZE")
POLL_SECONDS = 0.002


def peaks(case: Case, name: str, part: str, shares: list[float]) -> list[int]:
    """Peak extra bytes at each share, measured in a process of its own; RuntimeError with its last line if it dies."""
    asked = {"case": asdict(case), "name": name, "part": part, "shares": shares, "threads": torch.get_num_threads()}
    command = [sys.executable, "-W", "ignore", "-m", "eval.benchmarks.head.memory", json.dumps(asked)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise RuntimeError(f"{name}, {case}: exit code {done.returncode}, {last}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def peaks_here(case: Case, name: str, part: str, shares: list[float]) -> list[int]:
    """The same in this process, which should have done nothing else."""
    _warm(case, name, part)
    inputs, found = case.inputs(), []
    for share in shares:
        inputs.forget_gradients()
        call = call_of(CONTENDERS[name], part, inputs, inputs.kept(share))
        found.append(growth(call, case.device))
    return found


def _warm(case: Case, name: str, part: str) -> None:
    shape = Shape.named(case.shape)
    few = replace(case, shape=f"8x{shape.hidden}x{shape.teacher_hidden}x64")
    inputs = (case if CONTENDERS[name].compiles else few).inputs()
    call_of(CONTENDERS[name], part, inputs, inputs.kept(0.5))()


def growth(call: Callable[[], object], device: str) -> int:
    """Bytes at the peak of the call beyond those before it."""
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
    return _growth_by_kernel(call) if _reset_peak() else _growth_by_polling(call)


def resident_bytes() -> int:
    """Resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def _reset_peak() -> bool:
    """Set the peak back to the present; False where that can't be done."""
    try:
        reset_resident_peak()
        return resident_peak() - resident_bytes() < 64 << 20  # some sandboxes accept the write and do nothing
    except OSError:
        return False


def _growth_by_kernel(call: Callable[[], object]) -> int:
    before = resident_bytes()
    call()
    return max(0, resident_peak() - before)


def _growth_by_polling(call: Callable[[], object]) -> int:
    before, over, seen = resident_bytes(), threading.Event(), [0]

    def watch() -> None:
        while not over.is_set():
            seen[0] = max(seen[0], resident_bytes())
            time.sleep(POLL_SECONDS)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        call()
    finally:
        over.set()
        watcher.join()
    return max(0, max(seen[0], resident_bytes()) - before)


def main() -> None:
    """The process that is measured: one JSON list of bytes on the last line."""
    asked = json.loads(sys.argv[1])
    torch.set_num_threads(asked.pop("threads"))
    print(json.dumps(peaks_here(Case(**asked.pop("case")), **asked)))


if __name__ == "__main__":
    main()
