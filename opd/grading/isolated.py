"""Algebra in processes of its own: an expression that hangs, crashes or eats memory ends one of them, and is wrong."""

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

SECONDS = 3.0
"""After this a silent worker is killed; it gives up by itself after a third of it where Python can be interrupted."""
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
        """Its answer; None where it died or was too late, after which it is closed."""
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

    def close(self) -> None:
        """End it now."""
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()


_idle: queue.LifoQueue[Worker | None] = queue.LifoQueue()
for _ in range(WORKERS):
    _idle.put(None)


@lru_cache(maxsize=1 << 16)
def same_mathematics(found: str, gold: str) -> bool:
    """Whether both expressions are equal as mathematics; False where that can't be found out in time.

    Safe from many threads; WORKERS processes serve them all. Raises OSError where none can be started.
    """
    worker = _idle.get()
    try:
        worker = worker or Worker()
        answer = worker.ask(found, gold)
        worker = None if answer is None else worker
    except OSError:
        worker = None
        raise
    finally:
        _idle.put(worker)
    return bool(answer)


@atexit.register
def close_workers() -> None:
    """End the workers that wait for questions; a later question starts others."""
    for worker in [_idle.get() for _ in range(_idle.qsize())]:
        if worker:
            worker.close()
        _idle.put(None)
