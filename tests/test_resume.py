"""A run that is killed at random moments and resumed equals one that never was, bit for bit."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.launching import ROOT, environment

CLOCKED = ("time/", "memory/", "tokens_per_second")
"""Metrics that no two runs share."""

pytestmark = pytest.mark.engine
STEPS = 14


def command(toy: Path, runs: Path, name: str, *more: str) -> list[str]:
    overrides = {
        "student.model": toy / "student",
        "teacher.model": toy / "teacher",
        "prompts.path": toy / "train.jsonl",
        "rollout.type": "transformers",
        "rollout.max_new_tokens": 12,
        "rollout.samples_per_prompt": 2,
        "prompts_per_step": 4,
        "token_budget": 64,
        "steps": STEPS,
        "checkpoints.every": 1,
        "evaluate.every": 0,
        "evaluate.problems": 8,
        "evaluate.fixed_text": 4,
        "evaluate.teacher": "false",
    }
    given = [f"{key}={value}" for key, value in overrides.items()]
    recipe = "recipes/quickstart/quickstart.yaml"
    return [sys.executable, "-m", "opd", "train", recipe, *given, "--runs", str(runs), f"name={name}", *more]


def finished(toy: Path, runs: Path, name: str, *more: str) -> None:
    done = subprocess.run(
        command(toy, runs, name, *more), cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]


def killed(toy: Path, runs: Path, name: str, *more: str, after: int, wait: float) -> None:
    """SIGKILL `wait` seconds after metrics.jsonl has `after` lines."""
    process = subprocess.Popen(
        command(toy, runs, name, *more),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while lines(runs / name) < after and process.poll() is None:
            time.sleep(0.005)
        time.sleep(wait)
        assert process.poll() is None, "it ended before it could be killed"
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def lines(run: Path) -> int:
    path = run / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def metrics(run: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith(CLOCKED)} for row in rows]


def test_three_kills_change_no_bit(toy: Path, tmp_path: Path):
    finished(toy, tmp_path, "unbroken")
    draw = random.Random()
    for i in range(3):
        resume = ["--resume"] if i else []
        killed(toy, tmp_path, "broken", *resume, after=3 + 3 * i, wait=draw.uniform(0.0, 0.25))
    finished(toy, tmp_path, "broken", "--resume")

    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    assert len(metrics(unbroken)) == STEPS
    assert metrics(broken) == metrics(unbroken)
    weights, resumed = (load_file(run / "model" / "model.safetensors") for run in (unbroken, broken))
    assert weights.keys() == resumed.keys()
    assert all(torch.equal(weights[k], resumed[k]) for k in weights)
    moved = load_file(toy / "student" / "model.safetensors")
    assert any(not torch.equal(weights[k], moved[k]) for k in weights), "nothing was trained"
    scores = [json.loads((run / "summary.json").read_text())["scores"] for run in (unbroken, broken)]
    assert scores[0] == scores[1]
    left = sorted(p.name for p in (broken / "checkpoints").iterdir() if p.name.startswith("step-"))
    assert left == [f"step-{STEPS:06d}"]
