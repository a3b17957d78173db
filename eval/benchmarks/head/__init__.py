"""The loss head against TRL, Liger, plain torch and the floor: time, peak extra memory, error of the gradient.

    python -m eval.benchmarks.head --device cpu --out runs/head

In reading order: `cases.py` (shapes, what is measured, its inputs), `contenders.py` (who takes part), `floor.py` (the
matrix products that nobody can save), `clock.py` (one call's time), `rounds.py` (times, interleaved), `memory.py`
(peaks, a process a contender), `error.py` (gradients against float64), `results.py` (what was measured, and how to ask
it), `bars.py` (what we hold ourselves to), `report.py` (table, plot), `__main__.py` (the command). A contender is added
in `contenders.py` alone.
"""
