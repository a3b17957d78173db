"""Rollouts: token ids in, token ids out, never decoded and encoded again.

`settings.py` (the recipe's section), `engine.py` (the seam: what every engine promises, and how ranks share the work),
`vllm.py`, `transformers.py` (the engines), `source.py` (yields a step's rollouts: sampled now, or recorded).
To add an engine: subclass `RolloutEngine` with `sample` and `load`, and name it in `source.start_engine`.
"""
