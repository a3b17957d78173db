"""Make the comparison's pair, a teacher of five skills and a pupil that lacks one, and problems to distil on.

    python -m recipes.comparison.make_models [--to DIR] [--seed S]

Both learn worked chains of skills (eval/tasks/skills.py) from scratch, in about four minutes on one idle CPU core. What
the pupil is taught forgets most borrows, and nothing else: a small part of the tokens of a mixed rollout matters.
The folder is made, laid out and reused as the quickstart's, by the same code. One pair serves all seeds.
"""

from eval.tasks.skills import LONGEST_ANSWER, VOCABULARY, lessons, problems
from recipes.quickstart.make_models import Learner, Subject, main

SKILLS = Subject(VOCABULARY, LONGEST_ANSWER, problems, lessons)
TEACHER = Learner(layers=3, width=96, steps=650, lr=5e-3)
STUDENT = Learner(layers=2, width=96, steps=500, lr=5e-3, forget=0.8)

if __name__ == "__main__":
    main(__doc__, cache="comparison", subject=SKILLS, teacher=TEACHER, student=STUDENT)
