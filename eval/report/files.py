"""Writes the report of an evaluation: report.md, report.json, scores.png, and a harness file for each model."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from eval.fidelity import Fidelity
from eval.report.fidelity_table import fidelity_table
from eval.report.harness import harness_results
from eval.report.plot import plot_results
from eval.report.table import Table, comparison_table, scores_table
from eval.results import Result
from opd.run import write_atomic


def write_report(folder: Path, results: list[Result], fidelities: list[Fidelity]) -> list[Table]:
    """Write all files into `folder`; returns the tables. Of each task, every pair of models is compared."""
    tables = [scores_table(results)]
    if pairs := _pairs(results):
        tables.append(comparison_table(pairs))
    if fidelities:
        tables.append(fidelity_table(fidelities))
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "report.md", "\n".join([table.markdown() for table in tables] + _sources(results)))
    found = {
        "results": [
            {"model": r.model, "identity": r.identity, "score": r.score, "environment": r.environment} for r in results
        ],
        "tables": [asdict(table) for table in tables],
        "fidelity": [asdict(f) for f in fidelities],
    }
    write_atomic(folder / "report.json", json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    plot_results(results, fidelities, folder / "scores.png")
    for model in {result.model for result in results}:
        mine = [result for result in results if result.model == model]
        write_atomic(folder / f"harness-{model}.json", json.dumps(harness_results(mine), indent=1) + "\n")
    return tables


def _sources(results: list[Result]) -> list[str]:
    """Each command that sampled some of the answers, with commit, machine and versions."""
    sources = []
    for e in [result.environment for result in results]:
        versions = ", ".join(f"{name} {version}" for name, version in e["versions"].items())
        source = f"```\n{e['command']}\n```\n\nCommit {e['commit']}; {e['machine']}; {versions}.\n"
        if source not in sources:
            sources.append(source)
    return sources


def _pairs(results: list[Result]) -> list[tuple[Result, Result]]:
    """The later one of a table's two models first: what was gained over the earlier."""
    return [
        (later, earlier)
        for i, earlier in enumerate(results)
        for later in results[i + 1 :]
        if later.task == earlier.task and later.model != earlier.model and len(later.graded) > 1
    ]
