"""Which token selector is worth what: every arm of ARMS × seed on one recipe, then a table, a plot and paired tests.

    python -m eval.comparison recipes/comparison/comparison.yaml [--jobs 2] [--seeds 5]

Makes the pair where the recipe's folder has a make_models.py, scores the teacher, then runs `opd train` in
RUNS/<arm>-<seed>, one thread each. A finished run is not repeated; an interrupted one is deleted and started again.
Writes results.json, table.md and comparison.png beside the recipe. `--arms`, `--seeds` and OVERRIDES make a pilot.
"""

import argparse
import json
import os
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

import matplotlib
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from scipy import optimize, stats

from eval.statistics import mean_and_stderr
from opd.config import Recipe
from opd.errors import OpdError, RecipeError, RunError, TrainingError
from opd.recipe_text import load_recipe
from opd.run import differences, read_lines, write_atomic

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parents[1]
TEACHER = "teacher.json"
MEASURES = {"score": "exact match", "reverse_kl": "reverse KL, fixed text"}
ALPHA, POWER = 0.05, 0.8
THREADS = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
QUIET = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "DS_ACCELERATOR": "cpu"}

Runner = Callable[[list[str], Path], None]
"""command, log file → the command has run; raises TrainingError where it failed."""


@dataclass(frozen=True)
class Arm:
    """One line of the comparison: a selector's settings, and what else the recipe needs for it. once: seed 0 only."""

    name: str
    select: dict[str, Any]
    also: tuple[str, ...] = ()
    once: bool = False

    @property
    def share(self) -> str:
        """`20` of soft_or-20; empty for full."""
        return self.name.partition("-")[2]

    def overrides(self, seed: int) -> list[str]:
        """What `opd train` is told beside the recipe."""
        return [f"loss.0.select={json.dumps(self.select)}", *self.also, f"seed={seed}", f"name={self.name}-{seed}"]


ARMS = (
    Arm("full", {"type": "all"}),
    Arm("random-20", {"type": "random", "keep": 0.2}),
    Arm("random-50", {"type": "random", "keep": 0.5}),
    Arm("entropy-20", {"type": "entropy", "keep": 0.2}),
    Arm("entropy-50", {"type": "entropy", "keep": 0.5}),
    Arm("soft_or-20", {"type": "soft_or", "keep": 0.2}),
    Arm("soft_or-50", {"type": "soft_or", "keep": 0.5}),
    Arm("q3-20", {"type": "q3", "keep": 0.2}),
    Arm("q3-50", {"type": "q3", "keep": 0.5}),
    Arm("dial-20", {"type": "dial", "keep": 0.2}),
    Arm("dial-50", {"type": "dial", "keep": 0.5}),
    Arm("first_n-20", {"type": "first_n", "tokens": 11}, once=True),  # a fifth of a mean answer
    Arm("divergence-20", {"type": "divergence", "keep": 0.2}, once=True),
    Arm("d3s-20", {"type": "d3s", "keep": 0.2}, also=("advantage=reward",), once=True),
    Arm("opener-20", {"type": "opener", "entropy_share": 0.2}, once=True),  # a fifth of the entropy, not of the tokens
    Arm("surprisal-20", {"type": "surprisal", "keep": 0.2}, once=True),
    Arm("soft_gate-20", {"type": "soft_gate", "choose": "top", "keep": 0.2}, once=True),
)


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
        made = json.loads((self.folder / "summary.json").read_text())["recipe"]
        if changed := differences(made, self.recipe.model_dump(mode="json")):
            raise RunError(
                f"{self.folder} was made by another recipe ({'; '.join(changed)}); remove it or change --runs"
            )
        return True


def arms_named(names: str | None) -> list[Arm]:
    """The arms of a comma-separated list, in the order of ARMS; all of them for None."""
    wanted = names.split(",") if names else [arm.name for arm in ARMS]
    if unknown := set(wanted) - {arm.name for arm in ARMS}:
        raise RecipeError(f"there is no arm {', '.join(sorted(unknown))}; choose of {', '.join(a.name for a in ARMS)}")
    return [arm for arm in ARMS if arm.name in wanted]


def jobs_of(arms: list[Arm], recipe: Path, overrides: list[str], *, seeds: int, runs: Path) -> list[Job]:
    """Every arm × seed, seed by seed, so that what is finished can be compared at any time."""
    jobs = []
    for seed in range(seeds):
        for arm in arms:
            if seed and arm.once:
                continue
            said = [*overrides, *arm.overrides(seed)]
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


def teacher_score(recipe: Recipe, runs: Path, runner: Runner) -> dict[str, Any]:
    """The teacher's exact match on the same problems, measured once."""
    path = runs / TEACHER
    if not path.is_file():
        settings, log = recipe.evaluate, runs / "teacher.log"
        asked = {"model": recipe.teacher.model, "task": settings.task, "problems": settings.problems}
        asked |= {"precision": recipe.precision, "engine": recipe.rollout.type}
        options = [word for name, value in asked.items() for word in (f"--{name}", str(value))]
        runner([sys.executable, "-m", "opd", "eval", *options], log)
        write_atomic(path, log.read_text().strip().splitlines()[-1] + "\n")
    return json.loads(path.read_text())


def outcome(folder: Path) -> dict[str, Any]:
    """What the comparison takes from one run: tokens trained on, and both measures before and after."""
    summary = json.loads((folder / "summary.json").read_text())
    (scores,) = summary["scores"].values()
    start, end = scores["student_start"], scores["student_end"]
    lines = read_lines(folder / "metrics.jsonl")
    return {
        "tokens": sum(line["term0/tokens"] for line in lines),
        "kept": float(np.mean([line["term0/kept"] for line in lines])),
        "score": end["score"],
        "reverse_kl": end["fixed_text"]["reverse_kl"],
        "start": {"score": start["score"], "stderr": start["stderr"], "reverse_kl": start["fixed_text"]["reverse_kl"]},
        "seconds": summary["wall_seconds"],
        "commit": summary["commit"],
        "machine": summary["machine"],
    }


@dataclass(frozen=True)
class Paired:
    """Mean paired difference of two arms over seeds, its 95 % interval, p of the paired t-test, and what was visible.

    detectable: the smallest true difference that so many seeds of this spread find with 80 % power at p < 0.05.
    """

    difference: float
    low: float
    high: float
    p: float
    detectable: float


def paired(ours: list[float], theirs: list[float]) -> Paired:
    """Compare two arms, seed by seed (at least two); without any spread p is 1 for no difference, and 0 for one."""
    differences = np.subtract(ours, theirs)
    mean, spread = float(differences.mean()), float(differences.std(ddof=1))
    if spread == 0:
        return Paired(mean, mean, mean, float(mean == 0), 0.0)
    test = stats.ttest_rel(ours, theirs)
    low, high = test.confidence_interval(1 - ALPHA)
    return Paired(mean, float(low), float(high), float(test.pvalue), detectable(spread, len(differences)))


def detectable(spread: float, n: int, *, alpha: float = ALPHA, power: float = POWER) -> float:
    """The true mean difference that a two-sided paired t-test of n pairs finds with this power.

    spread: standard deviation of the paired differences. The test statistic follows a noncentral t with δ·√n/spread.
    """
    critical = stats.t.ppf(1 - alpha / 2, n - 1)

    def missing(shift: float) -> float:
        return stats.nct.sf(critical, n - 1, shift) - power  # the wrong side's tail is nothing beside it

    return float(optimize.brentq(missing, 0.0, 10 * critical)) * spread / n**0.5


def holm(p: list[float]) -> list[float]:
    """p-values adjusted for the whole family, Holm's step-down.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = np.argsort(p)
    stepped = np.maximum.accumulate([(len(p) - rank) * p[i] for rank, i in enumerate(order)])
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(1.0, stepped)
    return adjusted.tolist()


def results_of(outcomes: dict[str, dict[int, dict]], teacher: dict[str, Any]) -> dict[str, Any]:
    """Everything that is reported. outcomes: arm → seed → `outcome`; one Holm family for all tests of both measures."""
    arms = {}
    for name, by_seed in outcomes.items():
        values = {key: [o[key] for o in by_seed.values()] for key in ("tokens", "kept", "seconds", *MEASURES)}
        arms[name] = {"seeds": list(by_seed)} | {key: mean_and_stderr(value) for key, value in values.items()}
        share = name.partition("-")[2]
        others = {"full": "full", "random": f"random-{share}"}
        arms[name]["against"] = {
            label: {measure: _against(by_seed, outcomes[other], measure) for measure in MEASURES}
            for label, other in others.items()
            if other in outcomes and other != name
        }
    tests = [t for arm in arms.values() for by in arm["against"].values() for t in by.values() if "p" in t]
    for test, adjusted in zip(tests, holm([t["p"] for t in tests]), strict=True):
        test["p_holm"] = adjusted
    starts = {seed: o["start"] for by_seed in outcomes.values() for seed, o in by_seed.items()}
    start = next(iter(starts.values()))
    return {
        "teacher": {key: teacher[key] for key in ("score", "stderr", "n")},
        "start": {
            "score": {"score": start["score"], "stderr": start["stderr"], "n": teacher["n"]},
            "reverse_kl": mean_and_stderr([s["reverse_kl"] for s in starts.values()]),
        },
        "arms": arms,
        "tests": len(tests),
        "runs": {name: {str(seed): o for seed, o in by_seed.items()} for name, by_seed in outcomes.items()},
    }


def _against(ours: dict[int, dict], theirs: dict[int, dict], measure: str) -> dict[str, Any]:
    """The comparison over the seeds that both arms have; a difference alone where that is one."""
    seeds = sorted(ours.keys() & theirs.keys())
    values = [[by_seed[seed][measure] for seed in seeds] for by_seed in (ours, theirs)]
    if len(seeds) < 2:
        return {"difference": float(np.subtract(*values).mean())} if seeds else {}
    return vars(paired(*values))


def table(results: dict[str, Any]) -> str:
    """The Markdown table: one row an arm, the untrained student first and the teacher last."""
    start, teacher = results["start"], results["teacher"]
    titles = ("arm", "seeds", "tokens trained on", "kept")
    for title in ("exact match, %", "reverse KL on fixed text, nats a token"):
        titles += (title, "− full", "− random at the same share")
    blank = ["–", "–"]
    rows = [["student, untrained", "–", "0", "–", _percent(start["score"]), *blank, _nats(start["reverse_kl"]), *blank]]
    for name, arm in results["arms"].items():
        cells = [name, str(len(arm["seeds"])), f"{arm['tokens']['score']:,.0f}", f"{arm['kept']['score']:.0%}"]
        for measure, shown, scale, digits in (("score", _percent, 100, 1), ("reverse_kl", _nats, 1, 4)):
            cells.append(shown(arm[measure]))
            cells += [_test(arm["against"].get(to, {}).get(measure), scale, digits) for to in ("full", "random")]
        rows.append(cells)
    rows.append(["teacher", "–", "–", "–", _percent(teacher), *blank, "0", *blank])
    lines = [list(titles), ["---"] * len(titles), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def caption(results: dict[str, Any]) -> str:
    """What the table's cells mean, and what the runs' own spread could show."""
    tests = [t for arm in results["arms"].values() for by in arm["against"].values() for t in by.items() if "p" in t[1]]
    seen = {m: [t["detectable"] for measure, t in tests if measure == m] for m in MEASURES}
    text = (
        "Mean ± standard error over seeds (start and teacher: over problems); differences are paired by seed, with "
        f"their 95 % interval and the p of a paired t-test, Holm-corrected over all {len(tests)} tests of the table. "
        "Arms of one seed have a difference only. Each seed has its own fixed text, which most of the error of a mean "
        "reverse KL comes from, and none of a difference. "
    )
    if tests:
        middle = {measure: sorted(found)[len(found) // 2] for measure, found in seen.items()}
        text += (
            "By these runs' own spread a true difference of "
            f"{100 * middle['score']:.1f} points of exact match or {middle['reverse_kl']:.4f} nats (medians; at most "
            f"{100 * max(seen['score']):.1f} and {max(seen['reverse_kl']):.4f}) would have been found with {POWER:.0%} "
            f"power at p < {ALPHA} uncorrected."
        )
    return text.strip()


def _percent(value: dict[str, float]) -> str:
    return _pm(value, 100, 1)


def _nats(value: dict[str, float]) -> str:
    return _pm(value, 1, 4)


def _pm(value: dict[str, float], scale: float, digits: int) -> str:
    error = f" ± {scale * value['stderr']:.{digits}f}" if value["n"] > 1 else ""
    return f"{scale * value['score']:.{digits}f}{error}"


def _test(test: dict[str, float] | None, scale: float, digits: int) -> str:
    if not test:
        return "–"
    shown = f"{scale * test['difference']:+.{digits}f}"
    if "p" not in test:
        return shown
    p = "p < 0.001" if test["p_holm"] < 0.001 else f"p = {test['p_holm']:.3f}"
    return f"{shown} [{scale * test['low']:+.{digits}f}, {scale * test['high']:+.{digits}f}], {p}"


def plot(results: dict[str, Any], path: Path) -> None:
    """Both measures against tokens trained on: one point an arm, with standard errors; start and teacher as lines."""
    figure, panels = plt.subplots(1, 2, figsize=(13, 5), layout="constrained")
    selectors = list(dict.fromkeys(name.partition("-")[0] for name in results["arms"]))
    colors = plt.get_cmap("tab20").colors
    for axes, measure, scale in zip(panels, MEASURES, (100, 1), strict=True):
        for name, arm in results["arms"].items():
            selector, _, share = name.partition("-")
            axes.errorbar(
                arm["tokens"]["score"],
                scale * arm[measure]["score"],
                yerr=scale * arm[measure]["stderr"] if arm[measure]["n"] > 1 else None,
                marker={"20": "o", "50": "s"}.get(share, "D"),
                fillstyle="full" if arm[measure]["n"] > 1 else "none",
                color=colors[selectors.index(selector) % len(colors)],
                capsize=3,
                linestyle="none",
                label=name if arm[measure]["n"] > 1 else f"{name} (one seed)",
            )
        axes.axhline(
            scale * results["start"][measure]["score"], linestyle=":", color="grey", label="student, untrained"
        )
        end = scale * results["teacher"]["score"] if measure == "score" else 0.0
        axes.axhline(end, linestyle="--", color="grey", label="teacher")
    panels[0].set(title="exact match on held-out problems, %", xlabel="tokens trained on")
    panels[1].set(title="reverse KL on fixed held-out text, nats a token", xlabel="tokens trained on")
    panels[1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(path, dpi=120)
    plt.close(figure)


def report(jobs: list[Job], teacher: dict[str, Any], to: Path) -> str:
    """Write results.json, table.md and comparison.png into `to`; returns the table with its caption."""
    outcomes: dict[str, dict[int, dict]] = {}
    for job in jobs:
        arm = job.folder.name.rpartition("-")[0]
        outcomes.setdefault(arm, {})[job.recipe.seed] = outcome(job.folder)
    results = results_of(outcomes, teacher)
    text = f"{table(results)}\n{caption(results)}\n"
    to.mkdir(parents=True, exist_ok=True)
    write_atomic(to / "results.json", json.dumps(results, indent=1) + "\n")
    write_atomic(to / "table.md", text)
    plot(results, to / "comparison.png")
    return text


def main() -> None:
    """Make, run, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="KEY.PATH=VALUE", help="for every run, as in `opd train`")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--arms", metavar="A,B", help=f"default: {','.join(arm.name for arm in ARMS)}")
    parser.add_argument("--runs", type=Path, help="default: runs/<recipe's name>")
    parser.add_argument("--to", type=Path, help="where the results go; default: beside the recipe")
    asked = parser.parse_intermixed_args()
    runs = asked.runs or Path("runs") / asked.recipe.stem
    try:
        arms = arms_named(asked.arms)
        jobs = jobs_of(arms, asked.recipe, asked.overrides, seeds=asked.seeds, runs=runs)
        if (asked.recipe.parent / "make_models.py").is_file():
            module = ".".join((*asked.recipe.parent.resolve().relative_to(ROOT).parts, "make_models"))
            subprocess.run([sys.executable, "-m", module], cwd=ROOT, env=os.environ | QUIET, check=True)
        teacher = teacher_score(jobs[0].recipe, runs, by_command)
        run_all(jobs, by_command, at_once=asked.jobs)
        print(report(jobs, teacher, asked.to or asked.recipe.parent))
    except OpdError as error:
        sys.exit(f"comparison: {error}")


if __name__ == "__main__":
    main()
