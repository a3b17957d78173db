"""How faithfully a student does what its teacher does, beside how often both are right (arXiv 2505.15442).

`answers.py` (do both give the same answer, right or wrong), `tokens.py` (do both prefer the same next token, and how
far apart are their distributions), `rationales.py` (do both write alike), `report.py` (all of it for two models).
Accuracy can rise while fidelity does not.
"""

from eval.fidelity.report import TEXTS, Fidelity, fidelity

__all__ = ["TEXTS", "Fidelity", "fidelity"]
