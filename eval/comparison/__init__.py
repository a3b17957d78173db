"""Which token selector is worth what: every arm × seed on one recipe, then a table, a plot and paired tests.

    python -m eval.comparison recipes/comparison/comparison.yaml [--jobs 2] [--seeds 5]

In reading order: `__main__.py` (the command), `arms.py` (what is compared; one is added there alone), `runs.py` (the
runs: which are wanted, which are finished, one thread each), `results.py` (everything that is reported, from what the
runs left), `table.py` (the Markdown table and its caption), `plot.py`, `report.py` (writes all three).
"""
