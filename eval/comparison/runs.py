"""The comparison's runs: each a folder that is finished, or is deleted and made again."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from eval.comparison.arms import Arm
from eval.results import read_result
from opd.config import Recipe
from opd.errors import RecipeError, RunError, TrainingError
from opd.recipe_text import load_recipe, parse_recipe
from opd.run import RunFolder, recipe_differences

THREADS = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
QUIET = {"TOKENIZERS_PARALLELISM": "false"}

Runner = Callable[[list[str], Path], None]
"""command, log file → the command has run; raises TrainingError where it failed."""


@dataclass(frozen=True)
class Job:
    """One run: an arm with a seed, the recipe that it must have, and the command."""

    folder: Path
    recipe: Recipe
    command: list[str]

    def is_done(self) -> bool:
        """Whether it is finished; RunError where another recipe made it."""
        if not (self.folder / "summary.json").is_file():
            return False
        made = parse_recipe(json.loads((self.folder / "summary.json").read_text())["recipe"])
        if changed := recipe_differences(made, self.recipe):
            raise RunError(
                f"{self.folder} was made by another recipe ({'; '.join(changed)}); remove it or change --runs"
            )
        return True


def jobs_of(arms: list[Arm], recipe: Path, overrides: list[str], *, seeds: int, runs: Path) -> list[Job]:
    """Every arm × seed, seed by seed, so that what is finished can be compared at any time.

    RecipeError where a run would leave nothing to compare.
    """
    if seeds < 1:
        raise RecipeError(f"--seeds {seeds}: there is nothing to run; give 1 or more")
    base = load_recipe(recipe, overrides)
    if base.evaluate is None or not base.evaluate.fixed_text:
        raise RecipeError(f"{recipe} leaves no score or fixed text to compare by; set evaluate, and its fixed_text")
    if any(term.select != base.loss[0].select for term in base.loss):
        raise RecipeError(f"{recipe} has terms of several selectors, and an arm gives all of them one; make them equal")
    if base.prompts.chat_template_kwargs or base.teacher.revision:
        raise RecipeError(
            f"{recipe} has prompts.chat_template_kwargs or teacher.revision, with which opd eval can't score the "
            "teacher; remove them"
        )
    jobs = []
    for seed in range(seeds):
        for arm in arms:
            if seed and arm.once:
                continue
            said = [*overrides, *arm.overrides(seed, len(base.loss))]
            command = [sys.executable, "-m", "opd", "train", str(recipe), *said, "--runs", str(runs)]
            jobs.append(Job(runs / f"{arm.name}-{seed}", load_recipe(recipe, said), command))
    return jobs


def run_all(jobs: list[Job], runner: Runner, *, at_once: int) -> None:
    """Run what is not finished, `at_once` at a time; the first failure starts nothing more."""
    waiting = [job for job in jobs if not job.is_done()]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    console = Console(stderr=True)
    with (
        Progress(*columns, TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), console=console) as progress,
        ThreadPoolExecutor(at_once) as pool,
    ):
        task = progress.add_task(f"runs ({len(jobs) - len(waiting)} were there)", total=len(waiting))
        failed = threading.Event()
        futures = [pool.submit(_run, job, runner, failed) for job in waiting]
        try:
            for future in as_completed(futures):
                future.result()
                progress.advance(task)
        finally:
            failed.set()


def _run(job: Job, runner: Runner, failed: threading.Event) -> None:
    if failed.is_set():
        return
    try:
        if job.folder.exists():
            if not RunFolder(job.folder).hold():
                raise RunError(f"another process trains in {job.folder}; wait for its end, or stop it")
            shutil.rmtree(job.folder)
        runner(job.command, job.folder.with_name(f"{job.folder.name}.log"))
        if not job.is_done():
            raise TrainingError(f"{job.folder} has no summary.json though its command ended well; see its .log")
    except BaseException:
        failed.set()
        raise


def by_command(command: list[str], log: Path) -> None:
    """Run a command on one thread, its output in `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as file:
        done = subprocess.run(command, env=os.environ | QUIET | THREADS, stdout=file, stderr=subprocess.STDOUT)
    if done.returncode:
        last = (log.read_text().strip().splitlines() or ["no output"])[-1]
        raise TrainingError(f"{shlex.join(command)} failed, see {log}: {last}")


def teacher_score(recipe: Recipe, runs: Path) -> dict[str, Any]:
    """The teacher's exact match on the same problems; `opd eval` repeats nothing that is there."""
    settings, log = recipe.evaluate, runs / "teacher.log"
    asked = {"model": recipe.teacher.model, "tasks": settings.task, "problems": settings.problems}
    asked |= {"precision": recipe.precision, "engine": recipe.rollout.type, "out": runs / "teacher"}
    asked |= {"samples": settings.samples, "temperature": settings.temperature}
    asked |= {"thinking": "template", "system": recipe.prompts.system, "max-new-tokens": settings.max_new_tokens}
    options = [word for name, value in asked.items() if value is not None for word in (f"--{name}", str(value))]
    by_command([sys.executable, "-m", "opd", "eval", *options], log)
    (folder,) = re.findall(r"^result (.+)$", log.read_text(), re.MULTILINE)
    return read_result(Path(folder)).score
