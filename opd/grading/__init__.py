"""The grader: is a model's final answer the same as the known one? `opd/rewards.py` joins these into verdicts.

`extract.py` finds the final answer in a completion and says by which rule, `plain.py` writes an answer plainly
(no spacing, units, words around it), `units.py` knows units and money, `equal.py` compares two of them part by part,
`numbers.py` reads numbers exactly, `isolated.py` asks `worker.py`, a process of its own that may be killed, about
everything that needs algebra.
"""
