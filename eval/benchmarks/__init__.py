"""What our parts cost beside others'.

In reading order: `asked.py` (what the next two commands share), `head/` (the loss head against TRL, Liger, plain
torch and the floor), `step/` (one whole step against TRL's `DistillationTrainer`), `grader/` (what the grader makes of
real and hostile answers, and how fast).
"""
