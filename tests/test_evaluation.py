"""Scores in the middle of a run: kept once, and the best trained student stays."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file

from opd.distributed import Ranks
from opd.evaluation import evaluate_student, evaluate_teacher, fixed_text, is_best
from opd.rollout.engine import RolloutEngine, Sampling
from opd.run import SCORE_FILE, RunFolder
from tests import cases
from tests.test_train import parts_of


def test_the_best_is_the_first_of_the_highest_trained_ones():
    assert is_best(None, {"score": 0.0})
    assert is_best({"score": 0.4}, {"score": 0.5})
    assert not is_best({"score": 0.4}, {"score": 0.4}) and not is_best({"score": 0.4}, {"score": 0.3})


class Scores:
    """An evaluation that knows its scores beforehand."""

    prompts: ClassVar[list] = []
    max_new_tokens = 1

    def __init__(self, scores: list[float]) -> None:
        self.left = iter(scores)

    def __call__(self, engine, *, who, to) -> dict[str, Any]:
        return {"score": next(self.left), "stderr": 0.0, "n": 4}


def scored(tmp_path: Path, scores: list[float], every: int) -> dict[str, torch.Tensor]:
    """The weights in best/ after a run that scored so; each score's student has its number as first weight."""
    recipe = cases.recipe(evaluate={"task": "arithmetic", "every": every, "fixed_text": 0})
    parts = parts_of(recipe, tmp_path / "run", lambda rollout, step: [])
    evaluation = Scores(scores)
    parts = replace(parts, checked=replace(parts.checked, evaluation=evaluation), engine=RolloutEngine(Ranks()))
    for number in range(len(scores)):
        with torch.no_grad():
            parts.run.trainer.student.model.get_input_embeddings().weight[0, 0] = number
        evaluate_student(parts, f"step_{number}", steps=number)
        evaluate_student(parts, f"step_{number}", steps=number)
    found = json.loads((parts.folder.path / "scores.json").read_text())["arithmetic"]
    assert [s["score"] for s in found.values()] == scores
    best = parts.folder.best / "model.safetensors"
    return load_file(best) if best.exists() else {}


def test_the_teachers_engine_has_its_gpu_for_itself(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("opd.evaluation.engine_for", lambda *given: asked.append(given[-1]) or RolloutEngine(Ranks()))
    parts = parts_of(cases.recipe(evaluate={"task": "arithmetic", "fixed_text": 0}), tmp_path / "run", lambda *_: [])
    checked = replace(parts.checked, teacher_evaluation=Scores([1.0]))
    evaluate_teacher(checked, parts.folder, Ranks(), parts.run.clock)
    assert asked == [checked.recipe.rollout.alone] and not asked[0].sleep
    assert parts.folder.scores()["arithmetic"]["teacher"]["score"] == 1.0


def test_trackers_are_told_of_scores_at_the_step_that_they_are_of(tmp_path):
    told = []
    recipe = cases.recipe(evaluate={"task": "arithmetic", "fixed_text": 0})
    parts = parts_of(recipe, tmp_path / "run", lambda rollout, step: [])
    parts = replace(parts, checked=replace(parts.checked, evaluation=Scores([0.25])), engine=RolloutEngine(Ranks()))
    parts.run.trainer.accelerator.log = lambda metrics, step: told.append((step, metrics))
    for _ in range(2):
        evaluate_student(parts, "step_7", steps=7)
    assert told == [(7, {"evaluate/arithmetic": 0.25, "evaluate/arithmetic_stderr": 0.0})]


def test_a_run_that_scores_on_the_way_keeps_its_best_student(tmp_path):
    best = scored(tmp_path, [0.9, 0.2, 0.5, 0.5, 0.4], every=1)
    assert float(best["model.embed_tokens.weight"][0, 0]) == 2


def test_a_resumed_run_forgets_a_best_student_of_later_steps(tmp_path):
    scored(tmp_path, [0.9, 0.2, 0.5, 0.4], every=1)
    folder = RunFolder(tmp_path / "run")
    folder.cut_to(2)
    assert folder.best_score()["who"] == "step_2" and folder.best_score()["score"] == 0.5
    folder.cut_to(1)
    assert folder.best_score() is None and not folder.best.exists()
    aside = folder.best.with_name("best.step-2-1")
    assert json.loads((aside / SCORE_FILE).read_text())["score"] == 0.5, "nobody has made it again yet"


def test_a_run_that_does_not_has_no_best(tmp_path):
    assert scored(tmp_path, [0.1, 0.9], every=0) == {}


class Sampler(RolloutEngine):
    """Gives the same rollouts each time, and remembers how they were asked for."""

    def __init__(self) -> None:
        super().__init__(Ranks())
        self.asked: list[Sampling] = []

    def generate(self, prompts, sampling):
        self.asked.append(sampling)
        return cases.rollouts()


def test_fixed_text_is_sampled_once_and_at_temperature_1_whatever_trains(tmp_path):
    recipe = cases.recipe(evaluate={"task": "arithmetic", "fixed_text": 4}, rollout={"temperature": 1.3})
    parts = parts_of(recipe, tmp_path / "run", lambda rollout, step: [])
    engine = Sampler()
    parts = replace(parts, checked=replace(parts.checked, evaluation=Scores([])), engine=engine)
    assert fixed_text(parts) == fixed_text(parts) == cases.rollouts()
    assert [sampling.temperature for sampling in engine.asked] == [1.0]
