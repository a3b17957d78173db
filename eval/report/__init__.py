"""Results for people and for other tools.

`table.py` (scores and paired comparisons, as Markdown and in the terminal), `fidelity_table.py`, `plot.py` (scores
with intervals, accuracy against length and against fidelity), `harness.py` (the form that users of
lm-evaluation-harness know), `files.py` (writes all of it).
"""
