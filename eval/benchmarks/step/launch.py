"""A process for each side, and the most that one process of its tree held resident."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

from eval.benchmarks.step.results import Measured
from eval.benchmarks.step.setting import Peer, Setting, in_our_order, write_recipe
from opd.errors import TrainingError
from opd.metrics import resident_peak
from opd.run import read_lines

ROOT = Path(__file__).resolve().parents[3]
LAUNCHER = "launch/accelerate/cpu-1.yaml"
QUIET = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "DS_ACCELERATOR": "cpu"}
ONE_PROCESS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
"""Our engine lives in the training process, whatever the caller's variables say: its memory counts as ours."""
POLL_SECONDS = 0.5


def run_ours(setting: Setting, name: str, select: dict[str, Any], *, threads: int, log: Path) -> Measured:
    """`opd train` under `accelerate launch`, with the finer clock; its folder is kept no longer than the run."""
    with tempfile.TemporaryDirectory() as folder:
        recipe, run = Path(folder, "recipe.yaml"), Path(folder, "run")
        write_recipe(setting, select, recipe)
        launch = ["accelerate.commands.launch", "--config_file", LAUNCHER, "--main_process_port", "0"]
        train = ["-m", "eval.benchmarks.step.ours", "train", str(recipe), *setting.ours]
        train += [f"name={run.name}", "--runs", folder]
        peak = watched([*launch, *train], threads, log)
        phases = json.loads((run / "summary.json").read_text())["phases"]
        peak = max([peak, *(gib for name, gib in phases.items() if name.startswith("memory/"))])
        return complete(Measured(name, [read_lines(run / "metrics.jsonl")], peak), lacks=())


def run_peer(setting: Setting, name: str, peer: Peer, *, threads: int, log: Path) -> Measured:
    """TRL on the same questions in the same order."""
    with tempfile.TemporaryDirectory() as folder:
        asked, lines = Path(folder, "asked.json"), Path(folder, "lines.jsonl")
        same = {key: getattr(setting, key) for key in ("model", "prompts", "new_tokens", "steps")}
        theirs = {"questions": in_our_order(setting), "peer": asdict(peer), "to": str(lines)}
        asked.write_text(json.dumps(same | theirs))
        peak = watched(["eval.benchmarks.step.peer", str(asked)], threads, log)
        return complete(Measured(name, [read_lines(lines)], peak), lacks=("sync",))


def complete(measured: Measured, *, lacks: Iterable[str]) -> Measured:
    """The same; TrainingError where a phase that it should have was never seen: its seam has moved."""
    if missing := set(measured.missing()) - set(lacks):
        raise TrainingError(
            f"{measured.name} never came by {', '.join(sorted(missing))}: the code no longer calls what stands for it "
            "in eval/benchmarks/step/ours.py or peer.py"
        )
    return measured


def watched(module: list[str], threads: int, log: Path) -> float:
    """Run `python -m MODULE …` from the repository's root; GiB of its largest process. TrainingError where it fails."""
    command = [sys.executable, "-m", *module]
    few = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    environment = os.environ | QUIET | ONE_PROCESS | few
    peak = 0.0
    with log.open("w") as file:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT)
        try:
            while process.poll() is None:
                peak = max(peak, largest_gib(process.pid))
                time.sleep(POLL_SECONDS)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    if process.returncode:
        raise TrainingError(f"{shlex.join(command)} failed, see {log}: {reason(log.read_text())}")
    return peak


def reason(said: str) -> str:
    """The line of a failed process's output that says why: its last error but the launcher's, else its last words."""
    lines = [line.strip() for line in said.splitlines() if line.strip()] or ["no output"]
    errors = [line for line in lines if line.startswith("opd: ") or "Error: " in line]
    own = [line for line in errors if "CalledProcessError" not in line and "ChildFailedError" not in line]
    return (own or lines)[-1]


def largest_gib(pid: int) -> float:
    """Peak resident memory (VmHWM) of the largest process below and with `pid`; 0 where all have gone.

    The clock of a run sets VmHWM back at each phase, after it has noted it; so both are needed.
    """
    peaks = [0]
    with suppress(psutil.Error):
        root = psutil.Process(pid)
        for process in (root, *root.children(recursive=True)):
            with suppress(OSError):
                peaks.append(resident_peak(process.pid))
    return max(peaks) / 2**30
