"""Problems of a public data set: from the hub at a pinned revision, or from a folder that OPD_DATA names."""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.tasks.base import Problem
from opd.config import PromptSettings
from opd.errors import DataError
from opd.prompts import load_rows


@dataclass(frozen=True)
class Dataset:
    """Where a task's problems lie.

    hub: keys of PromptSettings, revision among them. file: its name below OPD_DATA, JSONL. sha256: of its problems as
    `digest` sees them, whatever else stands in the file. marker: what an answer follows in its column (GSM8K's ####).
    """

    task: str
    hub: dict[str, str]
    file: str
    sha256: str
    question: str = "problem"
    answer: str = "answer"
    marker: str | None = None

    def __call__(self, n: int | None = None) -> list[Problem]:
        """The first n problems, or all. Raises DataError where no data is reachable, or the file holds other data."""
        folder = os.environ.get("OPD_DATA")
        columns = {"question": self.question, "answer": self.answer}
        where = {"path": str(Path(folder) / self.file)} if folder else self.hub
        try:
            rows = load_rows(PromptSettings(**where, **columns))
        except DataError as error:
            if folder:
                raise DataError(f"task {self.task}: {error}; OPD_DATA must name a folder that holds it") from None
            raise DataError(
                f"task {self.task}: {self.hub['dataset']!r} at its pinned revision can't be had from the hub; "
                f"set OPD_DATA to a folder that holds {self.file}, or go online"
            ) from None
        problems = [self._problem(row) for row in rows]
        if folder and (found := digest(problems)) != self.sha256:
            raise DataError(
                f"task {self.task}: {self.file} in OPD_DATA {folder!r} holds other problems than this task's "
                f"(SHA-256 {found[:12]}…, not {self.sha256[:12]}…); put the whole original there, or unset OPD_DATA"
            )
        return problems[:n]

    def _problem(self, row: dict[str, Any]) -> Problem:
        answer = str(row[self.answer])
        answer = answer.rpartition(self.marker)[2].strip() if self.marker else answer
        return {"question": row[self.question], "answer": answer}


def digest(problems: list[Problem]) -> str:
    """SHA-256 of questions and answers in their order."""
    pairs = [[p["question"], p["answer"]] for p in problems]
    return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()
