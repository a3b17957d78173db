"""The comparison as a command: makes the pair, scores the teacher, runs every arm × seed, and reports.

Makes the pair where the recipe's folder has a make_models.py, scores the teacher, then runs `opd train` in
RUNS/<arm>-<seed>, one thread each. A finished run is not repeated; an interrupted one is deleted and started again.
Writes results.json, table.md and comparison.png beside the recipe. `--arms`, `--seeds` and OVERRIDES make a pilot.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

from eval import comparison
from eval.comparison.arms import ARMS, arms_named
from eval.comparison.report import report
from eval.comparison.runs import QUIET, by_command, jobs_of, run_all, teacher_score
from opd.errors import OpdError

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    """Make, run, compare."""
    parser = argparse.ArgumentParser("python -m eval.comparison", description=comparison.__doc__.splitlines()[0])
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
        teacher = teacher_score(jobs[0].recipe, runs)
        run_all(jobs, by_command, at_once=asked.jobs)
        print(report(jobs, teacher, asked.to or asked.recipe.parent))
    except OpdError as error:
        sys.exit(f"comparison: {error}")


if __name__ == "__main__":
    main()
