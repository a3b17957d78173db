r"""What the grader makes of real answers, and of ten thousand gradings of which a hundred are hostile.

    python -m eval.benchmarks.grader
    python -m eval.benchmarks.grader --data FOLDER

FOLDER holds JSONL files with `answer`, or `answer` at the end of GSM8K's worked text, and perhaps `solution`.

In reading order: `kinds.py` (answers that hang, crash or fill the memory of a careless grader), `hostile.py` (gradings
with such answers among them, and what became of them), `forms.py` (rewritings of an answer's form), `real.py` (own
solutions, rewritings, other problems' answers), `__main__.py` (the command).
"""
