"""What a model is worth: tasks, answers, grades, and how sure one can be.

In reading order: `tasks/` (problems, and how they are asked), `asking.py` (as one model is asked), `samples.py`
(answers, streamed to a file that resumes), `scores.py` (what graded answers are worth), `statistics/`, `results.py`
(what an evaluation leaves), `identity.py` (which weights answered), `runner.py` (scores the student in training, or any
models), `fidelity/` (student beside teacher), `report/` (tables, plots, files), `commands.py` (`opd eval`, `opd
compare`).
`comparison/` compares selectors, `benchmarks/` what our parts cost beside others'.

Imports opd; of opd, cli.py alone imports it.
"""
