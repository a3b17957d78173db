"""Tasks: where problems come from and how the question is put. One task, one file.

`base.py` says what a task is; `arithmetic.py` and `skills.py` are made here, `gsm8k.py` is a data set.
To add one: a file with a `Task`, and its line in TASKS. Raise `version` whenever a score could change.
"""

from eval.tasks import arithmetic, gsm8k, skills
from eval.tasks.base import Task

TASKS: dict[str, Task] = {"arithmetic": arithmetic.TASK, "gsm8k": gsm8k.TASK, "skills": skills.TASK}
