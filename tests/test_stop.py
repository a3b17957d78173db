"""The deleted stop: student and teacher end a turn with different tokens, and only a stop class keeps the student's.

Each gives the other's token about 1e-11, as was seen between Base students and chat teachers (arXiv 2609.20511).
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from opd import schedules
from opd.batch import Prompt
from opd.distributed import Ranks, Update
from opd.errors import DataError
from opd.metrics import Clock
from opd.report.stops import stop_report
from opd.rollout.source import live
from opd.rollout.transformers import TransformersEngine
from opd.step import Run, step
from opd.stop import StopTokens, stop_tokens
from opd.student import Student
from opd.teacher.local import LocalTeacher
from recipes.quickstart.make_models import character_tokenizer
from tests import cases, reference

OURS, THEIRS = cases.STOP
STEPS = 50
PROMPTS = [Prompt(i, [7 + i, 20, 11 + 2 * i]) for i in range(8)]


class TorchTrainer(cases.PlainTrainer):
    """Plain AdamW where the product has DeepSpeed."""

    def __init__(self, student: Student) -> None:
        super().__init__(student)
        self.optimizer = torch.optim.AdamW(student.parameters(), weight_decay=0.0)

    def update(self, lr: float, *, idle: bool = False) -> Update:
        self.optimizer.param_groups[0]["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad()
        return Update(skipped=False, grad_norm=0.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("student")
    cases.ending(OURS, never=THEIRS, seed=1, hidden=32).save_pretrained(path)
    return path


def untrained(stop: StopTokens) -> Run:
    """The pair at start, on tokens that it samples itself."""
    recipe = cases.recipe(
        "sampled",
        stop_class=stop.merged,
        steps=STEPS,
        optimizer={"lr": 3e-3, "schedule": "constant"},
        rollout={"type": "transformers", "max_new_tokens": 20, "samples_per_prompt": 8},
        metrics={"full_every": STEPS},
        precision="fp32",
    )
    student = Student(cases.ending(OURS, never=THEIRS, seed=1, hidden=32), tokens=cases.VOCABULARY)
    teacher = LocalTeacher(cases.ending(THEIRS, never=OURS, seed=2, hidden=48).requires_grad_(False))
    return Run(recipe, TorchTrainer(student), teacher, Ranks(), "rows", None, Clock(), stop.every)


def engine_of(folder: Path, run: Run, stop: StopTokens) -> TransformersEngine:
    settings = {"dtype": torch.float32, "max_tokens": 32, "stop": stop.ends_rollouts}
    return TransformersEngine(str(folder), run.recipe.rollout, run.ranks, **settings)


def rates_of_stopping(folder: Path, *, stop_class: bool) -> tuple[float, float]:
    """Shares of rollouts that end by themselves, before and after training."""
    stop = StopTokens([OURS], [THEIRS], merged=stop_class)
    run = untrained(stop)
    engine = engine_of(folder, run, stop)
    source = live(engine, lambda _: PROMPTS, seed=0)

    def rate() -> float:
        ends = [r.finish == "stop" for key in range(STEPS, STEPS + 4) for r in source(run.recipe.rollout, key)]
        return sum(ends) / len(ends)

    before = rate()
    for index in range(STEPS):
        step(run, schedules.at(run.recipe, index), source(run.recipe.rollout, index), index)
        engine.load(run.trainer.student.weights(), index + 1)
    return before, rate()


def test_training_on_sampled_tokens_deletes_the_stop_and_a_stop_class_keeps_it(folder: Path):
    before, merged = rates_of_stopping(folder, stop_class=True)
    same, apart = rates_of_stopping(folder, stop_class=False)
    assert before > 0.9 and same > 0.9
    assert merged > 0.9
    assert apart < 0.1


@pytest.mark.parametrize("stop_class", [False, True])
def test_the_report_before_step_1_gives_both_models_figures_and_warns_without_a_class(folder: Path, stop_class: bool):
    stop = StopTokens([OURS], [THEIRS], merged=stop_class)
    run = untrained(stop)
    student, teacher = cases.ending(OURS, never=THEIRS, seed=1, hidden=32), run.teacher.model
    # Ended by the student's own token alone, so that the teacher's figure is that token's.
    engine = engine_of(folder, run, StopTokens([OURS], [THEIRS], merged=False))
    rollouts = live(engine, lambda _: PROMPTS, seed=0)(run.recipe.rollout, 0)
    lines, differs = stop_report(run, stop, rollouts, character_tokenizer())
    ended = [r for r in rollouts if r.finish == "stop"]
    assert f"ends of {len(ended)} rollouts" in lines[1] and 0 < len(ended) < len(rollouts)
    own, both = {}, {}
    for who, model in {"student": student, "teacher": teacher}.items():
        p = torch.stack([reference.log_probs(model, r)[-1] for r in ended]).exp().double().mean(0)
        own[who], both[who] = p[OURS], p[OURS] + p[THEIRS]
    assert f"student gives its end token {own['student']:.3g} and all end tokens {both['student']:.3g}" in lines[1]
    assert f"the teacher {own['teacher']:.3g} and {both['teacher']:.3g}" in lines[1]
    assert own["teacher"] < 1e-10 and both["teacher"] > 0.1
    assert differs is not stop_class
    assert ("stop_class=true" in lines[1]) is differs


def test_the_report_says_so_when_no_rollout_ended():
    stop = StopTokens([OURS], [THEIRS], merged=False)
    cut_off = [replace(r, finish="length") for r in cases.rollouts()]
    lines, differs = stop_report(untrained(stop), stop, cut_off, character_tokenizer())
    assert "could not be measured" in lines[1] and not differs


def test_a_token_of_another_protocol_is_never_merged_but_still_ends_a_rollout():
    stop = StopTokens(student=[7, 9], teacher=[8, 9], merged=True, apart=(7,))
    assert stop.every == (8, 9) and stop.ends_rollouts == [7, 8, 9]
    assert StopTokens(student=[7, 9], teacher=[8, 9], merged=False).ends_rollouts == [7, 9]


def test_stop_tokens_are_the_tokenizers_and_the_generation_configs(toy, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(toy / "student")
    assert stop_tokens(tokenizer, str(toy / "student")) == [tokenizer.eos_token_id]
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 1]}))
    assert stop_tokens(tokenizer, str(tmp_path)) == [1, 5]
    config = json.loads((toy / "student" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"eos_token_id": [3, 6]}))
    assert stop_tokens(tokenizer, str(tmp_path)) == [1, 5]
    (tmp_path / "generation_config.json").unlink()
    assert stop_tokens(tokenizer, str(tmp_path)) == sorted({tokenizer.eos_token_id, 3, 6}), "as vLLM reads it"
    composite = {"model_type": "gemma3", "text_config": {"model_type": "gemma3_text", "eos_token_id": 1}}
    (tmp_path / "config.json").write_text(json.dumps(composite | {"eos_token_id": [1, 7]}))
    assert stop_tokens(tokenizer, str(tmp_path)) == sorted({tokenizer.eos_token_id, 1, 7}), "the whole model's first"
    tokenizer.eos_token = None
    (tmp_path / "generation_config.json").write_text("{}")
    with pytest.raises(DataError, match="no end token"):
        stop_tokens(tokenizer, str(tmp_path))
