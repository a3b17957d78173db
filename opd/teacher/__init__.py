"""Teachers: who scores the student's tokens.

`base.py` is the seam, `settings.py` the recipe's section, `local.py` a frozen model beside the student, `sharded.py`
one that the ranks hold in parts, `offloaded.py` one that is in main memory between uses, `placement.py` which of these
can be had, and whether ranks share its head by vocabulary, `check.py` what must hold before step 1. To add a teacher: a
class with `vocabulary`, `start`, `score` and `rest`, its settings (whose `gives` says what it can), `teacher:` in
`opd/config.py` as a union of both, and a line in `parts.load_teacher`. One without a model's folder needs an answer
wherever `teacher.model` is read: `opd/doctor.py`, `attention.py`, `memory.py`, `stop.py`, and `placement.py` here.
"""
