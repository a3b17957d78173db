"""The parts of a run are what its checked recipe says."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from eval.runner import Evaluation
from opd.batch import Rollout
from opd.distributed import Ranks
from opd.doctor import Checked, check
from opd.model_spec import ModelSettings
from opd.models import load_model
from opd.parts import grader, load_models, load_student, load_teacher, share_sequences, shared_rows
from opd.reading import backbone
from opd.recipe_text import parse_recipe
from opd.teacher.local import LocalTeacher
from opd.teacher.offloaded import OffloadedTeacher
from opd.teacher.sharded import ShardedTeacher
from opd.vocab_ranks import RankShard
from tests import cases
from tests.test_prompts import words


def scoring(toy: Path, **more: dict[str, Any]) -> dict[str, Any]:
    """A recipe, as YAML has it; `more` are further settings of its sections."""
    sections = {
        "student": {"model": str(toy / "student")},
        "teacher": {"type": "local", "model": str(toy / "teacher")},
        "prompts": {"path": str(toy / "train.jsonl"), "max_tokens": 16},
        "rollout": {"type": "transformers", "max_new_tokens": 16},
    }
    made = {name: section | more.get(name, {}) for name, section in sections.items()}
    return made | {"loss": [{"objective": {"type": "reverse_kl"}}], "precision": "fp32"}


def placed(toy: Path, **more: dict[str, Any]) -> Checked:
    """A checked recipe with settings that are refused on this machine."""
    plain = check(parse_recipe(scoring(toy)), Evaluation)
    return replace(plain, recipe=parse_recipe(scoring(toy, **more)))


@pytest.mark.parametrize("head", ["whole", "by_vocabulary"])
def test_a_rank_keeps_the_rows_of_the_teachers_head_that_the_recipe_says(head: str, toy: Path, monkeypatch):
    """This process stands for the second of two ranks."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(dist, "get_world_size", lambda group=None: 2)
    monkeypatch.setattr(dist, "get_rank", lambda group=None: 1)
    ranks = Ranks()
    ranks.index, ranks.count = 1, 2
    models = load_models(check(parse_recipe(scoring(toy, teacher={"head": head})), Evaluation), ranks, samples=False)
    every, teacher = models.student.head.weight_rows, models.teacher
    first = (every + 1) // 2
    expected = (None, every) if head == "whole" else (RankShard(first, every, every, first), every - first)
    assert (teacher.shard, len(teacher.model.lm_head.weight)) == expected
    assert shared_rows(models) == every, "tokens of both heads, all parts together"


@pytest.mark.parametrize(("asked", "given"), [(False, []), (True, [False]), ("offload", [True])])
def test_a_student_keeps_what_the_recipe_says_for_its_backward_pass(asked, given, toy: Path, monkeypatch):
    """Nothing anew, every block's input, or that on the host (which the doctor refuses without a GPU)."""
    seen = []
    enable = lambda self, kwargs, offload: seen.append(offload)  # noqa: E731
    monkeypatch.setattr("transformers.PreTrainedModel.gradient_checkpointing_enable", enable)
    fetched = []
    monkeypatch.setattr("opd.parts.processor_files", lambda model, name, revision: fetched.append(name))
    load_student(placed(toy, student={"gradient_checkpointing": asked}), Ranks())
    assert seen == given
    assert fetched == [str(toy / "student")], "what an export copies is fetched when the student loads"


@pytest.mark.parametrize("offload", [False, True])
def test_a_teacher_is_shared_between_ranks_as_the_recipe_says(offload: bool, toy: Path, monkeypatch):
    """DeepSpeed's part is played by the whole model; tests/teacher/test_sharded.py has real ranks."""
    asked, ranks = [], Ranks()

    def load(spec: ModelSettings, dtype: torch.dtype, *, offload: bool):
        asked.append((spec.model, dtype, offload))
        model = load_model(spec.model, dtype=dtype).requires_grad_(False)
        return model, backbone(model)

    monkeypatch.setattr("opd.parts.load_sharded", load)
    ranks.count = 2
    teacher = load_teacher(placed(toy, teacher={"shard": "zero3", "offload": offload}), ranks)
    assert isinstance(teacher, ShardedTeacher) and teacher.offload is offload
    assert asked == [(str(toy / "teacher"), torch.float32, offload)]


def test_a_teacher_that_is_not_shared_waits_in_main_memory_if_the_recipe_says_so(toy: Path):
    assert type(load_teacher(placed(toy, teacher={"offload": True}), Ranks())) is OffloadedTeacher
    alone = placed(toy, teacher={"shard": "zero3"})
    assert type(load_teacher(alone, Ranks())) is LocalTeacher, "as `opd doctor --models` is"
    assert type(load_teacher(placed(toy), Ranks())) is LocalTeacher


def test_all_models_that_a_step_reads_share_sequences_where_ranks_do(toy: Path, monkeypatch):
    """Student, teacher and reference, each under its own name; tests/test_ulysses.py has real ranks."""
    shared, ranks, checked = [], Ranks(), placed(toy)
    monkeypatch.setattr("opd.parts.share_checked", lambda model, *given: shared.append((model, given[-1])))
    models, reference = load_models(checked, ranks, samples=False), LocalTeacher(cases.origin())
    share_sequences(checked, models, reference, ranks)
    assert shared == [], "each rank has its own"
    ranks.pieces = 2
    share_sequences(checked, models, reference, ranks)
    read = (models.student.model, models.teacher.model, reference.model)
    assert [id(model) for model, _ in shared] == [id(model) for model in read]
    assert [name for _, name in shared] == [str(toy / who) for who in ("student", "teacher", "student")]


def test_a_reward_knows_a_thought_that_the_prompt_opened(toy: Path):
    """As in evaluation: what stands before the thought's end is no answer."""
    tokenizer = words("q ", "7", r"\boxed{7}")
    recipe = parse_recipe(scoring(toy, prompts={"answer": "answer"}))
    reward = grader(replace(check(recipe, Evaluation), tokenizer=tokenizer))

    def rollout(prompt: list[int], completion: list[int]) -> Rollout:
        n = len(completion)
        trained = [False] * len(prompt) + [True] * n
        return Rollout([*prompt, *completion], trained, [0.0] * n, [0] * n, "stop", 0, {"answer": "7"})

    assert reward(rollout([3], [5, 0])) == 1.0
    assert reward(rollout([3, 1], [5, 0])) == 0.0, "the thought never ended"
    assert reward(rollout([3, 1], [3, 2, 5, 0])) == 1.0
