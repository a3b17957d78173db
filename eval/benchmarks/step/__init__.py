"""One whole step beside TRL's `DistillationTrainer`, phase by phase: seconds, tokens/s, peak memory.

    python -m eval.benchmarks.step --model MODEL --data gsm8k_train.jsonl

In reading order: `setting.py` (what both do: prompts, recipe, TRL's configurations), `phases.py` (which call counts as
which phase), `ours.py` and `peer.py` (the two programs that are measured), `launch.py` (a process each, and its peak
memory), `results.py` (what was measured, and how to ask it), `report.py` (tables, bars), `__main__.py` (the command).
"""
