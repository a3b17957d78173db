"""Teachers: who scores the student's tokens.

`base.py` is the seam, `local.py` a frozen model beside the student, `check.py` what must hold before step 1.
To add a teacher: a class with `start`, `score` and `load`, a record in `opd/config.py`, a line in `opd/train.py`.
"""
