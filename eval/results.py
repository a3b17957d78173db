"""What an evaluation leaves behind beside its samples: result.json, and answers.jsonl to read."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from eval.asking import Asked
from eval.samples import Sample
from eval.scores import Graded, score_of
from opd.errors import RunError
from opd.rewards import GRADER
from opd.run import write_atomic

FILE = "result.json"


@dataclass(frozen=True)
class Result:
    """One model on one task: who was asked what (`identity`), the score, and every answer as it was graded.

    environment: command, commit, versions, machine of the process that sampled first. grader: its version.
    """

    model: str
    identity: dict[str, Any]
    score: dict[str, Any]
    graded: list[list[Graded]]
    environment: dict[str, Any]
    grader: int = GRADER

    @property
    def task(self) -> str:
        """The task's name."""
        return self.identity["task"]

    @property
    def flexible(self) -> list[list[float]]:
        """1.0 for each right answer, problem by problem."""
        return [[float(grade.flexible) for grade in problem] for problem in self.graded]

    def write(self, folder: Path) -> None:
        """Write result.json into the folder."""
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / FILE, json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n")


def write_answers(folder: Path, asked: Asked, samples: list[Sample], graded: list[list[Graded]]) -> None:
    """answers.jsonl: a line an answer, with question, known answer, text, and how it was graded."""
    grades = [grade for problem in graded for grade in problem]
    known = {prompt.index: prompt.extra for prompt in asked.prompts}
    lines = [
        {"problem": s.problem, "sample": s.sample, **known[s.problem], "text": s.text, **asdict(grade)}
        for s, grade in zip(samples, grades, strict=True)
    ]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    write_atomic(folder / "answers.jsonl", text)


def read_result(folder: Path) -> Result:
    """The result that lies in a folder (or is that file). Raises RunError in one line where there is none."""
    path = folder / FILE if folder.is_dir() else folder
    way_out = f"give a folder with a finished {FILE}, as `opd eval` leaves one for each model and task"
    try:
        found = json.loads(path.read_text())
        graded = [[Graded(**grade) for grade in problem] for problem in found["graded"]]
        return Result(**found | {"graded": graded, "score": score_of(graded)})
    except OSError:
        raise RunError(f"there is no result at {str(folder)!r}; {way_out}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{str(path)!r} is no result of `opd eval` ({error!r}); {way_out}") from None
