"""Every task keeps the same contract; public data is what it says it is; an evaluation asks, decodes and grades."""

import dataclasses
import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from eval.runner import Evaluation
from eval.tasks import TASKS, task_named, tasks_named
from eval.tasks.dataset import Dataset, digest
from opd.batch import Rollout
from opd.config import EvaluateSettings
from opd.distributed import Ranks
from opd.errors import DataError, RecipeError
from opd.rollout.engine import RolloutEngine

PUBLIC = [name for name, task in TASKS.items() if isinstance(task.load, Dataset)]
SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
SIZES = {"math500": 500, "aime24": 30, "aime25": 30, "gsm8k": 1319}


@pytest.fixture
def of_three(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A public task's loader for a file of three problems of one's own, in OPD_DATA."""

    def make(name: str) -> Dataset:
        data = TASKS[name].load
        rows = [{data.question: f"{n} and 1?", "answer": f"{data.marker or ''} {n + 1:,}"} for n in (1, 999, 3)]
        (tmp_path / data.file).write_text("".join(json.dumps(row) + "\n" for row in rows))
        problems = [data._problem(row) for row in rows]
        return dataclasses.replace(data, sha256=digest(problems))

    monkeypatch.setenv("OPD_DATA", str(tmp_path))
    return make


@pytest.mark.parametrize("name", TASKS)
def test_the_contract_of_a_task(name, of_three):
    task = task_named(name)
    load = of_three(name) if name in PUBLIC else task.load
    assert task.name == name and task.version >= 1
    assert task.sampling.max_new_tokens > 0 and (task.sampling.samples == 1 or task.sampling.temperature > 0)
    problems = load(2)
    assert len(problems) == 2 and problems == load(3)[:2] == load(2) and len(load(None)) >= 3
    assert all(p.keys() == {"question", "answer"} and p["question"] and p["answer"] for p in problems)


@pytest.mark.parametrize("name", PUBLIC)
def test_public_problems_are_pinned(name):
    data = TASKS[name].load
    assert len(data.hub["revision"]) == 40 and len(data.sha256) == 64 and TASKS[name].shots


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the data sets of ../shared/data")
@pytest.mark.parametrize("name", PUBLIC)
def test_the_real_files_are_the_tasks_own(name, monkeypatch):
    monkeypatch.setenv("OPD_DATA", str(SHARED))
    assert len(TASKS[name].load(None)) == SIZES[name]


def test_gsm8k_takes_the_answer_after_the_marks(of_three):
    assert [p["answer"] for p in of_three("gsm8k")(9)] == ["2", "1,000", "4"]


def test_another_file_of_that_name_is_refused(of_three, tmp_path):
    load = of_three("math500")
    path = tmp_path / "math500.jsonl"
    path.write_text(path.read_text().replace("999 and", "998 and"))
    with pytest.raises(DataError, match=r"task math500: math500.jsonl in OPD_DATA .* holds other problems"):
        load(1)


@pytest.mark.parametrize("name", PUBLIC)
def test_a_folder_without_the_file_says_so(name, tmp_path, monkeypatch):
    monkeypatch.setenv("OPD_DATA", str(tmp_path))
    with pytest.raises(DataError, match=f"no file at.*{TASKS[name].load.file}"):
        TASKS[name].load(1)


def test_without_hub_and_folder_it_is_said_what_to_set(monkeypatch):
    monkeypatch.delenv("OPD_DATA", raising=False)
    with pytest.raises(
        DataError, match=r"task aime24: .*can't be had from the hub; set OPD_DATA to a folder that holds aime2024.jsonl"
    ):
        TASKS["aime24"].load(1)


def test_an_unknown_task_is_named_with_its_neighbour():
    with pytest.raises(RecipeError, match=r"no task 'gsm9k'; did you mean 'gsm8k'\? tasks are math500, aime24"):
        task_named("gsm9k")
    assert [task.name for task in tasks_named("aime24, gsm8k,aime24,")] == ["aime24", "gsm8k"]


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


def test_an_evaluation_scores_greedy_answers_with_their_error(toy, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(toy / "student")
    evaluation = Evaluation(EvaluateSettings(task="arithmetic", problems=4), tokenizer)
    answers = [p["answer"] for p in TASKS["arithmetic"].load(4)]
    questions = [p["question"] for p in TASKS["arithmetic"].load(4)]
    assert [tokenizer.decode(p.token_ids) for p in evaluation.prompts] == questions
    texts = [f"1+1=2:{answers[0]}<eos>", f"{answers[1]}", "1+1=2:", "0000"]
    engine = Engine(texts, ["stop", "stop", "length", "stop"], tokenizer)
    score = evaluation(engine, who="step_3", to=tmp_path)
    assert {key: score[key] for key in ("score", "n", "truncated", "strict", "unboxed")} == {
        "score": 0.5, "n": 4, "truncated": 0.25, "strict": 0.0, "unboxed": 1.0,
    }  # fmt: skip
    assert score["stderr"] == pytest.approx(0.2886751)
    assert engine.max_new_tokens == evaluation.max_new_tokens == TASKS["arithmetic"].sampling.max_new_tokens
    assert json.loads((tmp_path / "result.json").read_text())["model"] == "step_3"
    assert Evaluation(EvaluateSettings(task="arithmetic", max_new_tokens=3), tokenizer).max_new_tokens == 3


def test_a_trained_student_is_compared_with_itself_at_start(toy, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(toy / "student")
    evaluation = Evaluation(EvaluateSettings(task="arithmetic", problems=4), tokenizer)
    a, b, c, d = (p["answer"] for p in TASKS["arithmetic"].load(4))
    said = {"student_start": [a, "0", "0", "0"], "teacher": [a, b, c, d], "step_5": [a, b, c, "0"]}
    scores = {
        who: evaluation(Engine(texts, ["stop"] * 4, tokenizer), who=who, to=tmp_path / who)
        for who, texts in said.items()
    }
    assert "gain" not in scores["student_start"] and "gain" not in scores["teacher"]
    gain = scores["step_5"]["gain"]
    assert gain["difference"] == 0.5 and gain["mcnemar"] == 0.5 and gain["n"] == 4
