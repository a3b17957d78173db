"""What a model is worth: `tasks/`, `runner.py` (scores a model), `statistics.py`, `comparison.py` (selectors compared).

Imports opd, never the reverse.
"""
