"""`opd eval` and `opd compare`, once their words are understood."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from eval.asking import Asking
from eval.fidelity import Fidelity, fidelity, fidelity_from
from eval.identity import key_of
from eval.report.files import write_report
from eval.report.table import comparison_table, scores_table
from eval.results import Result, read_result
from eval.runner import Host, Study, evaluate, prepare
from eval.tasks import Task
from opd.metrics import Clock
from opd.run import write_atomic


def evaluate_models(
    models: list[str], teacher: str | None, tasks: list[Task], asking: Asking, host: Host, out: Path
) -> None:
    """Evaluate every model (the teacher among them) on every task; print the tables, write the report into `out`."""
    clock, console = Clock(), _console()
    with clock("prepare"):
        studies = prepare(models, tasks, asking, host, out)
    results = evaluate(studies, host, clock)
    fidelities = []
    if teacher:
        with clock("fidelity"):
            fidelities = _fidelities(list(zip(studies, results, strict=True)), teacher, host)
    with clock("write"):
        tables = write_report(out, results, fidelities)
    for table in tables:
        console.print(table.rich())
    seconds = clock.take()
    spent = ", ".join(f"{phase} {seconds[f'time/{phase}']:.1f}" for phase in PHASES if f"time/{phase}" in seconds)
    console.print(f"seconds: {spent}\nreport {out / 'report.md'}", highlight=False, soft_wrap=True)


PHASES = ("prepare", "start", "sample", "grade", "fidelity", "write")
"""In order of time: checks and hashes, engines, answers, grades, comparison with the teacher, files and plots."""


def compare_folders(folders: list[Path]) -> None:
    """Print the scores of finished results, and each compared with the first one, problem by problem."""
    results = [read_result(folder) for folder in folders]
    comparison = comparison_table([(later, results[0]) for later in results[1:]])
    for table in (scores_table(results), comparison):
        _console().print(table.rich())


def _console() -> Console:
    """As wide as the terminal; wide enough for a table where there is none."""
    console = Console()
    return console if console.is_terminal else Console(width=200)


def _fidelities(evaluated: list[tuple[Study, Result]], teacher: str, host: Host) -> list[Fidelity]:
    """Of each other model on each task; measured once, and kept beside the student's answers."""
    theirs = {study.asked.task.name: (study, result) for study, result in evaluated if study.model == teacher}
    found = []
    for study, result in evaluated:
        if study.model == teacher:
            continue
        other = theirs[study.asked.task.name]
        path = study.folder / f"fidelity-{key_of(other[1].identity)}.json"
        if not path.exists():
            write_atomic(path, json.dumps(asdict(fidelity((study, result), other, host)), indent=1) + "\n")
        found.append(fidelity_from(json.loads(path.read_text())))
    return found
