"""Answers stream to a file: a kill loses a round at most, nothing is sampled twice, and the end is the same."""

import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from eval.asking import Asked, Asking, ask
from eval.samples import SampleFile, rounds, sample
from eval.tasks import TASKS
from eval.tasks.base import Shot
from opd.batch import Prompt, Rollout
from opd.distributed import Ranks
from opd.errors import RunError
from opd.rollout.engine import Completion, RolloutEngine
from tests.launching import ROOT, environment, forked, program, start
from tests.test_prompts import words

IDENTITY = {"weights": "a", "task": "arithmetic"}


class Counting(RolloutEngine):
    """Answers with the prompt's own tokens, and counts what it was asked; it may fail after some."""

    def __init__(self, fails_after: int | None = None) -> None:
        super().__init__(Ranks())
        self.asked: list[tuple[int, int | None]] = []
        self.fails_after = fails_after

    def sample(self, requests, sampling) -> list[Completion]:
        if self.fails_after is not None and len(self.asked) >= self.fails_after:
            raise KeyboardInterrupt
        self.asked += [(r.prompt.index, r.seed) for r in requests]
        return [
            Completion([*r.prompt.token_ids, r.seed % 7], [0.0] * (len(r.prompt.token_ids) + 1), "stop")
            for r in requests
        ]


@pytest.fixture
def tokenizer(toy: Path):
    return AutoTokenizer.from_pretrained(toy / "student")


@pytest.fixture
def asked(tokenizer) -> Asked:
    """150 problems, three answers each: rounds of 21 problems, the last of 3."""
    return ask(TASKS["arithmetic"], tokenizer, Asking(problems=150, samples=3))


def filled(path: Path, asked: Asked, tokenizer, engine: RolloutEngine) -> list[int]:
    told: list[int] = []
    SampleFile(path, IDENTITY, asked).complete(engine, tokenizer, told.append)
    return told


def test_an_interrupted_file_goes_on_and_nothing_is_sampled_twice(tmp_path, asked, tokenizer):
    whole, broken = tmp_path / "whole.jsonl", tmp_path / "broken.jsonl"
    told = filled(whole, asked, tokenizer, Counting())
    assert sum(told) == 450 and len(told) == 1 + len(rounds(asked))
    first, second, third = Counting(fails_after=130), Counting(), Counting()
    with pytest.raises(KeyboardInterrupt):
        filled(broken, asked, tokenizer, first)
    assert filled(broken, asked, tokenizer, second)[0] == len(first.asked) == 189
    assert broken.read_bytes() == whole.read_bytes()
    assert len({*first.asked, *second.asked}) == len(first.asked) + len(second.asked) == 450
    filled(broken, asked, tokenizer, third)
    assert third.asked == [] and broken.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("cut", [1, 40, 5_000, 12_345])
def test_a_file_that_a_kill_cut_off_anywhere_is_mended(tmp_path, asked, tokenizer, cut):
    whole = tmp_path / "whole.jsonl"
    filled(whole, asked, tokenizer, Counting())
    known = whole.read_bytes()
    whole.write_bytes(known[: len(known) - cut])
    filled(whole, asked, tokenizer, Counting())
    assert whole.read_bytes() == known


def test_samples_stand_in_order_with_the_tokens_of_each_first_answer(tmp_path, asked, tokenizer):
    path = tmp_path / "samples.jsonl"
    filled(path, asked, tokenizer, Counting())
    samples = SampleFile(path, IDENTITY, asked).read()
    assert [(s.problem, s.sample) for s in samples] == [(p, n) for p in range(150) for n in range(3)]
    for one in samples[:30]:
        prompt = asked.prompts[one.problem].token_ids
        assert (one.token_ids is None) == (one.sample > 0) and one.tokens == len(prompt) + 1
        assert one.token_ids is None or one.token_ids[:-1] == prompt
    assert json.loads(path.read_text().splitlines()[0]) == IDENTITY


@pytest.mark.parametrize(
    "other, whose", [({"weights": "b"}, "another model"), ({"task": "skills"}, "another question")]
)
def test_answers_of_others_are_refused(tmp_path, asked, tokenizer, other, whose):
    path = tmp_path / "samples.jsonl"
    SampleFile(path, IDENTITY, asked).check()
    filled(path, asked, tokenizer, Counting())
    SampleFile(path, IDENTITY, asked).check()
    with pytest.raises(RunError, match=f"holds answers of {whose} .*give another --out"):
        SampleFile(path, IDENTITY | other, asked).check()


def test_a_failed_rollout_is_an_answer_too(tmp_path, asked, tokenizer):
    class Failing(Counting):
        def _rollout(self, request, done) -> Rollout:
            return super()._rollout(request, Completion([], [], "error"))

    path = tmp_path / "samples.jsonl"
    filled(path, asked, tokenizer, Failing())
    assert {(s.text, s.tokens, s.finish) for s in SampleFile(path, IDENTITY, asked).read()} == {("", 0, "error")}


def arguments(toy: Path, out: Path) -> list[str]:
    words = ["--model", str(toy / "student"), "--tasks", "arithmetic", "--problems", "512", "--samples", "2"]
    words += ["--engine", "transformers", "--precision", "fp32", "--max-new-tokens", "30", "--out", str(out)]
    return ["eval", *words]


def test_a_killed_evaluation_ends_as_an_unbroken_one(toy, tmp_path):
    forked(program, environment(), "opd", arguments(toy, tmp_path / "whole"))
    (process,) = start(program, environment(), "opd", arguments(toy, tmp_path / "broken")).processes
    deadline = time.monotonic() + 100
    while not (files := list(tmp_path.glob("broken/*/*/samples.jsonl"))) or files[0].read_bytes().count(b"\n") < 200:
        assert process.is_alive() and time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    process.join()
    assert files[0].read_bytes().count(b"\n") < 1 + 512 * 2, "killed too late: nothing was left to do"
    words = arguments(toy, tmp_path / "broken")
    subprocess.run([sys.executable, "-m", "opd", *words], cwd=ROOT, env=environment(), check=True, timeout=200)
    for name in ("samples.jsonl", "result.json"):
        (whole,), (broken,) = tmp_path.glob(f"whole/*/*/{name}"), tmp_path.glob(f"broken/*/*/{name}")
        ours, theirs = (path.read_text().replace(str(tmp_path), "") for path in (whole, broken))
        assert ours.replace("/whole", "/broken") == theirs


def test_a_round_that_stands_twice_is_not_the_next_one(tmp_path, asked, tokenizer):
    """As two processes would leave a file that wrote it at once."""
    path = tmp_path / "samples.jsonl"
    filled(path, asked, tokenizer, Counting())
    whole = path.read_text()
    lines = whole.splitlines(keepends=True)
    path.write_text("".join([*lines[:64], *lines[1:64], *lines[64:]]))
    assert len(SampleFile(path, IDENTITY, asked).read()) == 63
    filled(path, asked, tokenizer, Counting())
    assert path.read_text() == whole


def test_two_processes_do_not_write_one_file(tmp_path, asked, tokenizer):
    path = tmp_path / "samples.jsonl"

    class Meanwhile(Counting):
        def sample(self, requests, sampling):
            filled(path, asked, tokenizer, Counting())

    with pytest.raises(RunError, match="another opd eval writes"):
        filled(path, asked, tokenizer, Meanwhile())


def test_a_base_models_answer_ends_before_its_next_question(toy, tmp_path):
    """Text, tokens, their number and the finish are of the answer; the rest of the completion is nobody's."""
    tokenizer = AutoTokenizer.from_pretrained(toy / "student")
    task = dataclasses.replace(TASKS["arithmetic"], shots=(Shot("1+1=", "2"),))
    asked = ask(task, tokenizer, Asking(problems=1, form="few_shot"))
    asked = dataclasses.replace(asked, prompts=[Prompt(0, [1, 2], {"question": "3+4=", "answer": "7"})])

    class Rambling(Counting):
        def sample(self, requests, sampling):
            return [Completion([3, 4, 5, 6, 3], [0.0] * 5, "length")]

    (sampled,) = sample(Rambling(), asked.prompts, asked, words("7", "\n", "Q", ": 1+1"))
    assert (sampled.text, sampled.tokens, sampled.token_ids, sampled.finish) == ("7", 1, [3], "stop")
