"""AIME 2025, both papers: 30 problems whose answers are integers from 0 to 999.

Version 1: zero-shot, boxed answer, mean of 16 samples at temperature 1.
"""

from eval.tasks.base import INSTRUCTION, MEAN_AT_16, Task
from eval.tasks.dataset import Dataset
from eval.tasks.math500 import SHOTS

TASK = Task(
    name="aime25",
    version=1,
    load=Dataset(
        task="aime25",
        hub={
            "dataset": "math-ai/aime25",
            "split": "test",
            "revision": "563bb8404243c5f09de6ec262f2db674fe5bce9b",
        },
        file="aime2025.jsonl",
        sha256="9812870c534fa43d104dfbc65724cf89b413287f23717335ff59b150a9e9ea13",
    ),
    instruction=INSTRUCTION,
    sampling=MEAN_AT_16,
    shots=SHOTS,
)
