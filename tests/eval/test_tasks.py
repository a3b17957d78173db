"""Every task keeps the same contract, and an evaluation asks, decodes and grades as the task says."""

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from eval.runner import Evaluation, task_named
from eval.tasks import TASKS
from opd.batch import Rollout
from opd.config import EvaluateSettings
from opd.distributed import Ranks
from opd.errors import DataError, RecipeError
from opd.rollout.engine import RolloutEngine

GSM8K = [{"question": f"{n} and 1?", "answer": f"add\n#### {n + 1:,}"} for n in (1, 999, 3)]


@pytest.fixture
def local_gsm8k(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """GSM8K's test file in a folder of one's own."""
    path = tmp_path / "gsm8k_test.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in GSM8K))
    monkeypatch.setenv("OPD_DATA", str(tmp_path))
    return path


@pytest.mark.parametrize("name", TASKS)
def test_the_contract_of_a_task(name, local_gsm8k):
    task = task_named(name)
    assert task.name == name and task.version >= 1 and task.max_new_tokens > 0
    problems = task.load(2)
    assert len(problems) == 2 and problems == task.load(3)[:2] == task.load(2)
    assert all(p.keys() == {"question", "answer"} and p["question"] and p["answer"] for p in problems)


def test_gsm8k_takes_the_answer_after_the_marks(local_gsm8k):
    assert [p["answer"] for p in TASKS["gsm8k"].load(9)] == ["2", "1,000", "4"]


def test_gsm8k_without_its_file_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("OPD_DATA", str(tmp_path))
    with pytest.raises(DataError, match="no file at"):
        TASKS["gsm8k"].load(1)


def test_an_unknown_task_is_named():
    with pytest.raises(RecipeError, match="no task 'gsm9k'; choose one of arithmetic, gsm8k"):
        task_named("gsm9k")


class Engine(RolloutEngine):
    """Answers every problem with a text of its own, one greedy sample each."""

    def __init__(self, texts: list[str], finish: list[str], tokenizer) -> None:
        super().__init__(Ranks())
        self.texts, self.finish, self.tokenizer = texts, finish, tokenizer

    def generate(self, prompts, sampling):
        assert (sampling.samples, sampling.temperature) == (1, 0.0)
        self.max_new_tokens = sampling.max_new_tokens
        made = []
        for prompt, text, finish in zip(prompts, self.texts, self.finish, strict=True):
            ids = self.tokenizer(text, add_special_tokens=False).input_ids
            trained = [False] * len(prompt.token_ids) + [True] * len(ids)
            zeros = [0] * len(ids)
            made.append(
                Rollout(prompt.token_ids + ids, trained, [0.0] * len(ids), zeros, finish, prompt.index, prompt.extra)
            )
        return made


def test_an_evaluation_scores_greedy_answers_with_their_error(toy):
    tokenizer = AutoTokenizer.from_pretrained(toy / "student")
    settings = EvaluateSettings(task="arithmetic", problems=4)
    evaluation = Evaluation(settings, tokenizer)
    answers = [p["answer"] for p in TASKS["arithmetic"].load(4)]
    questions = [p["question"] for p in TASKS["arithmetic"].load(4)]
    assert [tokenizer.decode(p.token_ids) for p in evaluation.prompts] == questions
    texts = [f"1+1=2:{answers[0]}<eos>", f"{answers[1]}", "1+1=2:", "0000"]
    engine = Engine(texts, ["stop", "stop", "length", "stop"], tokenizer)
    score = evaluation(engine)
    assert score == {"score": 0.5, "stderr": pytest.approx(0.2886751), "n": 4, "truncated": 0.25}
    assert engine.max_new_tokens == TASKS["arithmetic"].max_new_tokens
    assert Evaluation(EvaluateSettings(task="arithmetic", max_new_tokens=3), tokenizer).max_new_tokens == 3
