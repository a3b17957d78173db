"""What a model is worth: `tasks/`, `runner.py` (scores a model), `statistics/`, `comparison/` (selectors compared),
`benchmarks/` (what our parts cost beside others').

Imports opd, never the reverse.
"""
