"""Tasks: where problems come from, how the question is put and how answers are sampled. One task, one file.

`base.py` says what a task is, and `dataset.py` where the problems of a public data set lie; `math500.py`, `aime24.py`,
`aime25.py` and `gsm8k.py` are such, `arithmetic.py` and `skills.py` are made here.
To add one: a file with a `Task`, and its name in TASKS. Raise `version`, with a line in the file's docstring, whenever
a score could change.
"""

import difflib

from eval.tasks import aime24, aime25, arithmetic, gsm8k, math500, skills
from eval.tasks.base import Task
from opd.errors import RecipeError

TASKS: dict[str, Task] = {
    module.TASK.name: module.TASK for module in (math500, aime24, aime25, gsm8k, arithmetic, skills)
}


def tasks_named(names: str) -> list[Task]:
    """Tasks by their names with commas between, each once."""
    return [task_named(name) for name in dict.fromkeys(name.strip() for name in names.strip(", ").split(","))]


def task_named(name: str) -> Task:
    """The task; RecipeError in one line, with the nearest name, if there is none."""
    if name in TASKS:
        return TASKS[name]
    near = difflib.get_close_matches(name, TASKS, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise RecipeError(f"there is no task {name!r}; {hint}tasks are {', '.join(TASKS)}")
