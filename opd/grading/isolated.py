"""Algebra in processes of its own: an expression that hangs, crashes or eats memory ends one of them, undecided."""

from __future__ import annotations

import atexit
import json
import os
import queue
import selectors
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

SECONDS = 60.0
"""After this a silent worker is killed; by its own processor time (`worker.py`) it ends before, unless it waits."""
START_SECONDS = 60.0
WORKERS = min(4, os.cpu_count() or 1)
ROOT = Path(__file__).resolve().parents[2]


class Worker:
    """One process of `worker.py`; its end of file is its end, so it never outlives us."""

    def __init__(self) -> None:
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "opd.grading.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": path},
        )
        self._ready = False

    def ask(self, found: str, gold: str) -> bool | None:
        """Its answer; None where it has none, and where it died or was too late, after which it is closed."""
        try:
            if not self._ready and self._line(START_SECONDS) != b"ready\n":
                raise OSError("a worker of the grader did not start")
            self._ready = True
            self._process.stdin.write(json.dumps([found, gold]).encode() + b"\n")
            self._process.stdin.flush()
            if line := self._line(SECONDS):
                return json.loads(line)
        except BrokenPipeError:
            pass
        self.close()
        return None

    def _line(self, seconds: float) -> bytes:
        """The next line, or nothing: too late, or it died."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            return self._process.stdout.readline() if selector.select(seconds) else b""

    @property
    def closed(self) -> bool:
        """Whether it has ended."""
        return self._process.returncode is not None

    def close(self) -> None:
        """End it now."""
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()


_idle: queue.LifoQueue[Worker | None] = queue.LifoQueue()
for _ in range(WORKERS):
    _idle.put(None)


class Undecided(Exception):
    """Algebra was not decided in time."""


@lru_cache(maxsize=1 << 16)
def same_mathematics(found: str, gold: str) -> bool:
    """Whether both expressions are equal as mathematics.

    Raises Undecided, which is not remembered, where the processor time and memory of one question don't suffice to
    find out. Safe from many threads; WORKERS processes serve them all. Raises OSError where none can be started.
    """
    worker = _idle.get()
    try:
        worker = worker or Worker()
        answer = worker.ask(found, gold)
        worker = None if worker.closed else worker
    except OSError:
        worker = None
        raise
    finally:
        _idle.put(worker)
    if answer is None:
        raise Undecided(found, gold)
    return answer


@atexit.register
def close_workers() -> None:
    """End the workers that wait for questions; a later question starts others."""
    for worker in [_idle.get() for _ in range(_idle.qsize())]:
        if worker:
            worker.close()
        _idle.put(None)
