"""The comparison's three files: results.json, table.md and comparison.png."""

import json
from pathlib import Path
from typing import Any

from eval.comparison.plot import plot
from eval.comparison.results import outcome, results_of
from eval.comparison.runs import Job
from eval.comparison.table import caption, table
from opd.run import write_atomic


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
