"""`opd eval` and `opd compare`, once their words are understood."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from eval.asking import Asking
from eval.fidelity import Fidelity, fidelity
from eval.identity import key_of
from eval.report.files import write_report
from eval.report.table import comparison_table, scores_table
from eval.results import Result, read_result
from eval.runner import Evaluated, Host, evaluate, prepare
from eval.tasks import Task
from opd.arithmetic import precision_warning
from opd.errors import RunError
from opd.metrics import Clock

CUT_OFF = 0.2
"""A larger share of answers that were cut off is said aloud."""
EVAL_PHASES = ("prepare", "start", "sample", "grade", "fidelity", "write")
"""In order of time: checks and hashes, engines, answers, grades, comparison with the teacher, files and plots."""


def evaluate_models(
    models: list[str], teacher: str | None, tasks: list[Task], asking: Asking, host: Host, out: Path
) -> None:
    """Evaluate every model (the teacher among them) on every task; print the tables, write the report into `out`."""
    clock, console = Clock(), _console()
    with clock("prepare"):
        studies = prepare(models, tasks, asking, host, out)
    if slow := precision_warning(host.precision):
        console.print(slow, highlight=False, soft_wrap=True)
    evaluated = evaluate(studies, host, clock)
    fidelities = []
    if teacher:
        with clock("fidelity"):
            fidelities = _fidelities(evaluated, teacher, host)
    folder = out / f"report-{key_of([one.result.identity for one in evaluated])}"
    with clock("write"):
        tables = write_report(folder, [one.result for one in evaluated], fidelities)
    for table in tables:
        console.print(table.rich())
    for line in [*_warnings([one.result for one in evaluated]), *(f"result {one.study.folder}" for one in evaluated)]:
        console.print(line, highlight=False, soft_wrap=True)
    seconds = clock.take()
    spent = ", ".join(f"{phase} {seconds[f'time/{phase}']:.1f}" for phase in EVAL_PHASES if f"time/{phase}" in seconds)
    console.print(f"seconds: {spent}\nreport {folder / 'report.md'}", highlight=False, soft_wrap=True)


def _warnings(results: list[Result]) -> list[str]:
    """A line for each result whose score means little because many answers were cut off."""
    return [
        f"{r.model}, {r.task}: {r.score['truncated']:.0%} of the answers were cut off at "
        f"{r.identity['max_new_tokens']} tokens; raise --max-new-tokens, or read the score with that in mind"
        for r in results
        if r.score["truncated"] > CUT_OFF
    ]


def compare_folders(folders: list[Path]) -> None:
    """Print the scores of finished results, and each compared with the first one, problem by problem."""
    if len(folders) < 2:
        raise RunError("opd compare wants at least two results; give the folders of two or more")
    results = [read_result(folder) for folder in folders]
    comparison = comparison_table([(later, results[0]) for later in results[1:]])
    for table in (scores_table(results), comparison):
        _console().print(table.rich())


def _console() -> Console:
    """As wide as the terminal; wide enough for a table where there is none."""
    console = Console()
    return console if console.is_terminal else Console(width=200)


def _fidelities(evaluated: list[Evaluated], teacher: str, host: Host) -> list[Fidelity]:
    """Of each other model on each task."""
    theirs = {one.result.task: one for one in evaluated if one.study.model == teacher}
    students = [one for one in evaluated if one.study.model != teacher]
    return [fidelity(student, theirs[student.result.task], host) for student in students]
