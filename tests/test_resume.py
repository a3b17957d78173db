"""A run that is killed at random moments and resumed equals one that never was, bit for bit."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.multiprocessing import ProcessExitedException

from opd import run
from opd.run import RunFolder
from tests.launching import ROOT, environment, forked, program, start

CLOCKED = ("time/", "memory/", "tokens_per_second")
"""Metrics that no two runs share."""

pytestmark = pytest.mark.engine
STEPS = 14


def arguments(toy: Path, runs: Path, name: str, *more: str) -> list[str]:
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
        "evaluate.every": 4,
        "evaluate.problems": 8,
        "evaluate.fixed_text": 4,
        "evaluate.teacher": "false",
    }
    given = [f"{key}={value}" for key, value in overrides.items()]
    recipe = "recipes/quickstart/quickstart.yaml"
    return ["train", recipe, *given, "--runs", str(runs), f"name={name}", *more]


def finished(toy: Path, runs: Path, name: str, *more: str) -> None:
    forked(program, environment(), "opd", arguments(toy, runs, name, *more))


def killed(toy: Path, runs: Path, name: str, *more: str, after: int, wait: float) -> None:
    """SIGKILL `wait` seconds after metrics.jsonl has `after` lines."""
    (process,) = start(program, environment(), "opd", arguments(toy, runs, name, *more)).processes
    try:
        while lines(runs / name) < after and process.is_alive():
            time.sleep(0.005)
        time.sleep(wait)
        assert process.is_alive(), "it ended before it could be killed"
    finally:
        process.kill()
        process.join()


def kills_itself(_: int, words: list[str]) -> None:
    """The same program, but it is killed as soon as step 5 is written: the clock could not aim as well."""

    class Folder(RunFolder):
        def append_metrics(self, metrics):
            super().append_metrics(metrics)
            if metrics["step"] == 5:
                os.kill(os.getpid(), signal.SIGKILL)

    run.RunFolder = Folder
    program(0, environment(), "opd", words)


def assert_kills_itself(toy: Path, runs: Path, name: str, *more: str) -> None:
    with pytest.raises(ProcessExitedException, match="SIGKILL"):
        forked(kills_itself, arguments(toy, runs, name, *more))


def lines(run: Path) -> int:
    path = run / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def metrics(run: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith(CLOCKED)} for row in rows]


def summary(run: Path) -> dict:
    return json.loads((run / "summary.json").read_text())


@pytest.fixture(scope="module")
def unbroken(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("unbroken")
    finished(toy, runs, "run")
    start, end = (load_file(folder / "model.safetensors") for folder in (toy / "student", runs / "run" / "model"))
    assert any(not torch.equal(start[name], end[name]) for name in end), "nothing was trained"
    assert len(metrics(runs / "run")) == STEPS
    return runs / "run"


def assert_same(broken: Path, unbroken: Path) -> None:
    """Metrics, weights and scores are the same to the last bit."""
    assert metrics(broken) == metrics(unbroken)
    weights, resumed = (load_file(run / "model" / "model.safetensors") for run in (unbroken, broken))
    assert weights.keys() == resumed.keys()
    assert all(torch.equal(weights[k], resumed[k]) for k in weights)
    scores = summary(unbroken)["scores"]["arithmetic"]
    assert set(scores) == {"student_start", "step_4", "step_8", "step_12", "student_end"}
    assert summary(broken)["scores"]["arithmetic"] == scores
    best, resumed = (load_file(run / "best" / "model.safetensors") for run in (unbroken, broken))
    assert all(torch.equal(best[k], resumed[k]) for k in best)


LORA = ["student.lora={targets: [all-linear, lm_head], rank: 4, merge: true}", "steps=5", "evaluate.every=2"]


def test_adapters_resume_without_a_bit_of_difference_from_checkpoints_that_hold_nothing_else(toy: Path, tmp_path: Path):
    """The program kills itself at step 5, before its checkpoint; model/ holds the adapter, merged/ what it makes."""
    finished(toy, tmp_path, "unbroken", *LORA)
    assert_kills_itself(toy, tmp_path, "broken", *LORA)
    (checkpoint,) = (tmp_path / "broken" / "checkpoints").glob("step-000004/*/mp_rank_00_model_states.pt")
    assert all("lora_" in name for name in torch.load(checkpoint, weights_only=False)["module"])
    finished(toy, tmp_path, "broken", *LORA, "--resume")
    broken, unbroken = tmp_path / "broken", tmp_path / "unbroken"
    assert metrics(broken) == metrics(unbroken) and len(metrics(broken)) == 5
    for file in ("model/adapter_model.safetensors", "model/merged/model.safetensors", "best/adapter_model.safetensors"):
        one, other = (load_file(run / file) for run in (broken, unbroken))
        assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    start, end = (load_file(f / "model.safetensors") for f in (toy / "student", unbroken / "model" / "merged"))
    moved = {name.split(".")[-2] for name, weight in end.items() if not torch.equal(start[name], weight)}
    assert moved == {f"{layer}_proj" for layer in ("q", "k", "v", "o", "gate", "up", "down")} | {"lm_head"}


def test_three_kills_change_no_bit(toy: Path, tmp_path: Path, unbroken: Path):
    draw = random.Random()
    for i in range(3):
        resume = ["--resume"] if i else []
        killed(toy, tmp_path, "broken", *resume, after=3 + 3 * i, wait=draw.uniform(0.0, 0.25))
    finished(toy, tmp_path, "broken", "--resume")
    assert_same(tmp_path / "broken", unbroken)
    left = sorted(p.name for p in (tmp_path / "broken" / "checkpoints").iterdir() if p.name.startswith("step-"))
    assert left == [f"step-{STEPS:06d}"]


def test_a_kill_between_checkpoints_trains_and_scores_again_from_the_last(toy: Path, tmp_path: Path, unbroken: Path):
    """Checkpoints after 3, 6, … steps, scores after 4, 8, …: what step 4 scored before the kill is scored again.

    By a process of its own, as a user would start it.
    """
    assert_kills_itself(toy, tmp_path, "broken", "checkpoints.every=3")
    broken = tmp_path / "broken"
    assert lines(broken) == 5
    assert "step_4" in json.loads((broken / "scores.json").read_text())["arithmetic"]
    assert [p.name for p in (broken / "checkpoints").glob("step-*")] == ["step-000003"]
    words = arguments(toy, tmp_path, "broken", "checkpoints.every=3", "--resume")
    subprocess.run([sys.executable, "-m", "opd", *words], cwd=ROOT, env=environment(), check=True, timeout=300)
    assert_same(broken, unbroken)
    said, rows = summary(broken), [json.loads(line) for line in (broken / "metrics.jsonl").read_text().splitlines()]
    assert said["resumed_from"] == 3
    (again,) = said["resumed"]
    assert again["from_step"] == 3 and "--resume" in again["command"] and "--resume" not in said["command"]
    assert [row["step"] for row in rows if "time/start" in row] == [1, 4], "each process has started once"
    for phase in ("time/start", "time/step"):
        assert said["phases"][phase] == pytest.approx(sum(row.get(phase, 0) for row in rows))
