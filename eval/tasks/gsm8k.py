"""GSM8K's test problems (arXiv 2110.14168). Version 1: zero-shot, boxed answer."""

import os
from pathlib import Path

from eval.tasks.base import Problem, Task
from opd.config import PromptSettings
from opd.errors import DataError
from opd.prompts import load_rows

REVISION = "e53f048856ff4f594e959d75785d2c2d37b678ee"
SOURCE = {"dataset": "openai/gsm8k", "name": "main", "split": "test", "revision": REVISION}
FILE = "gsm8k_test.jsonl"


def load(n: int) -> list[Problem]:
    """The first n test problems: from the folder named by OPD_DATA if it is set, else from the hub."""
    folder = os.environ.get("OPD_DATA")
    try:
        rows = load_rows(PromptSettings(path=str(Path(folder) / FILE)) if folder else PromptSettings(**SOURCE))
    except DataError as error:
        raise DataError(f"task gsm8k: {error}; or set OPD_DATA to a folder that holds {FILE}") from None
    return [{"question": r["question"], "answer": r["answer"].rpartition("####")[2].strip()} for r in rows[:n]]


TASK = Task(
    name="gsm8k",
    version=1,
    load=load,
    instruction="\nPlease reason step by step, and put your final answer within \\boxed{}.",
    max_new_tokens=512,
)
