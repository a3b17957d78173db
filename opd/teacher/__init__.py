"""Teachers: who scores the student's tokens.

`base.py` is the seam, `settings.py` the recipe's section, `local.py` a frozen model beside the student, `placement.py`
whether ranks share its head by vocabulary, `check.py` what must hold before step 1. To add a teacher: a class with
`start` and `score`, its settings (whose `gives` says what it can), `teacher:` in `opd/config.py` as a union of both,
and a line in `parts.load_models`.
"""
