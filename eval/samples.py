"""Answers as they are sampled, and the file that they stream to: what was killed goes on where it stopped."""

from __future__ import annotations

import fcntl
import json
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from eval.asking import Asked
from opd.batch import FinishReason, Prompt
from opd.distributed import world_size
from opd.errors import RunError
from opd.prompts import completion_text
from opd.rollout.engine import RolloutEngine
from opd.run import differences, environment, read_lines, write_atomic


@dataclass(frozen=True)
class Sample:
    """One answer to one problem, and why it ended.

    text, tokens: of the part of the completion that answers. token_ids are kept of each problem's first answer only,
    for the fidelity report.
    """

    problem: int
    sample: int
    text: str
    tokens: int
    finish: FinishReason
    token_ids: list[int] | None = None


class SampleFile:
    """A JSONL file: what was asked of whom, then one sample a line, in order of problem, then number.

    Samples come in rounds of whole problems, always the same ones, and a round counts when all of it is there: what an
    engine samples depends on what it samples beside, so only then does a resumed file equal an unbroken one.
    """

    def __init__(self, path: Path, identity: dict[str, Any], asked: Asked) -> None:
        self.path, self.identity, self.asked = path, identity, asked

    def environment(self) -> dict[str, Any]:
        """Command, commit, versions and machine of the process that began the file."""
        return json.loads(self.path.with_name("environment.json").read_text())

    def check(self) -> None:
        """RunError in one line if the file holds answers to something else."""
        header = next(iter(read_lines(self.path)), None)
        if header is None or header == self.identity:
            return
        changed = "; ".join(differences(header, self.identity))
        whose = "another model" if header.get("weights") != self.identity["weights"] else "another question"
        raise RunError(f"{str(self.path)!r} holds answers of {whose} ({changed}); give another --out, or delete it")

    def read(self) -> list[Sample]:
        """The samples of all rounds that are whole."""
        lines = (Sample(**line) for line in read_lines(self.path)[1:])
        samples: list[Sample] = []
        for prompts in rounds(self.asked):
            places = [(prompt.index, n) for prompt in prompts for n in range(self.asked.sampling.samples)]
            found = list(islice(lines, len(places)))
            if [(s.problem, s.sample) for s in found] != places:
                break
            samples += found
        return samples

    def complete(self, engine: RolloutEngine, tokenizer: PreTrainedTokenizerBase, seen: Callable[[int], None]) -> None:
        """Sample every round that is missing, each appended as soon as it is whole; `seen` is told of each sample."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._alone():
            if not self.path.exists():
                write_atomic(self.path.with_name("environment.json"), json.dumps(environment(), indent=1) + "\n")
            done = self.read()
            write_atomic(self.path, "".join(_line(entry) for entry in [self.identity, *map(asdict, done)]))
            seen(len(done))
            first = len({sample.problem for sample in done})
            for prompts in rounds(self.asked):
                if prompts[0].index < first:
                    continue
                samples = sample(engine, prompts, self.asked, tokenizer)
                with self.path.open("a") as file:
                    file.write("".join(_line(asdict(s)) for s in samples))
                seen(len(samples))

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """RunError where another process writes the file."""
        with self.path.with_suffix(".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise RunError(
                    f"another opd eval writes {str(self.path)!r}; wait for it, or give another --out"
                ) from None
            yield


def rounds(asked: Asked) -> list[list[Prompt]]:
    """The prompts, as many at a time as engines sample well together: about 64 answers on a CPU, 256 on each GPU."""
    answers = 256 * world_size() if torch.cuda.is_available() else 64
    size = max(1, answers // asked.sampling.samples)
    return [asked.prompts[start : start + size] for start in range(0, len(asked.prompts), size)]


def sample(
    engine: RolloutEngine, prompts: list[Prompt], asked: Asked, tokenizer: PreTrainedTokenizerBase
) -> list[Sample]:
    """Every prompt's answers, in order; collective. Of each completion, the part that answers."""
    made = []
    for place, rollout in enumerate(engine.generate(prompts, asked.sampling)):
        number, finish, ids = place % asked.sampling.samples, rollout.finish, rollout.completion
        said = completion_text(tokenizer, ids)
        text = asked.answer(said)
        if text != said:
            ids, finish = _tokens_of(text, ids, tokenizer), "stop"
        kept = ids if number == 0 else None
        made.append(Sample(prompts[rollout.group].index, number, text, len(ids), finish, kept))
    return made


def _tokens_of(text: str, ids: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The fewest first tokens that say the text."""
    count = bisect_left(range(len(ids)), len(text), key=lambda n: len(completion_text(tokenizer, ids[:n])))
    return ids[:count]


def _line(entry: dict[str, Any]) -> str:
    return json.dumps(entry) + "\n"
