"""Rollouts: token ids in, token ids out, never decoded and encoded again.

`settings.py` (the recipe's section), `engine.py` (the seam: what every engine promises, and how ranks share the work),
`vllm.py`, `transformers.py` (the engines), `start.py` (starts the one that is named), `check.py` (what must hold before
it does), `source.py` (yields a step's rollouts: sampled now, or recorded), `files.py` (rollouts on disk).
To add an engine: subclass `RolloutEngine` with `sample` and `load`, and name it in `start.ENGINES` and in the `type` of
`settings.py`.
"""
