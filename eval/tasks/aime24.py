"""AIME 2024, both papers: 30 problems whose answers are integers from 0 to 999.

Version 1: zero-shot, boxed answer, mean of 16 samples at temperature 1.
"""

from eval.tasks.base import INSTRUCTION, MEAN_AT_16, Task
from eval.tasks.dataset import Dataset
from eval.tasks.math500 import SHOTS

TASK = Task(
    name="aime24",
    version=1,
    load=Dataset(
        task="aime24",
        hub={
            "dataset": "HuggingFaceH4/aime_2024",
            "split": "train",
            "revision": "2fe88a2f1091d5048c0f36abc874fb997b3dd99a",
        },
        file="aime2024.jsonl",
        sha256="7a562086ee152ec4ba0b0962bfa778c056ce3f48cff565208c4dee8c01879f75",
    ),
    instruction=INSTRUCTION,
    sampling=MEAN_AT_16,
    shots=SHOTS,
)
