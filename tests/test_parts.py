"""The parts of a run are what its checked recipe says."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch.distributed as dist

from eval.runner import Evaluation
from opd.batch import Rollout
from opd.distributed import Ranks
from opd.doctor import check
from opd.parts import grader, load_models, load_student, shared_rows
from opd.recipe_text import parse_recipe
from opd.vocab_ranks import RankShard
from tests.test_prompts import words


@pytest.mark.parametrize("head", ["whole", "by_vocabulary"])
def test_a_rank_keeps_the_rows_of_the_teachers_head_that_the_recipe_says(head: str, toy: Path, monkeypatch):
    """This process stands for the second of two ranks."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(dist, "get_world_size", lambda group=None: 2)
    monkeypatch.setattr(dist, "get_rank", lambda group=None: 1)
    recipe = {
        "student": {"model": str(toy / "student")},
        "teacher": {"type": "local", "model": str(toy / "teacher"), "head": head},
        "prompts": {"path": str(toy / "train.jsonl"), "max_tokens": 16},
        "rollout": {"type": "transformers", "max_new_tokens": 16},
        "loss": [{"objective": {"type": "reverse_kl"}}],
        "precision": "fp32",
    }
    ranks = Ranks()
    ranks.index, ranks.count = 1, 2
    models = load_models(check(parse_recipe(recipe), Evaluation), ranks, samples=False)
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
    recipe = parse_recipe(
        {
            "student": {"model": str(toy / "student")},
            "teacher": {"type": "local", "model": str(toy / "teacher")},
            "prompts": {"path": str(toy / "train.jsonl"), "max_tokens": 16},
            "rollout": {"type": "transformers", "max_new_tokens": 16},
            "loss": [{"objective": {"type": "reverse_kl"}}],
        }
    )
    student = recipe.student.model_copy(update={"gradient_checkpointing": asked})
    checked = replace(check(recipe, Evaluation), recipe=recipe.model_copy(update={"student": student}))
    load_student(checked, Ranks())
    assert seen == given


def test_a_reward_knows_a_thought_that_the_prompt_opened(toy: Path):
    """As in evaluation: what stands before the thought's end is no answer."""
    tokenizer = words("q ", "7", r"\boxed{7}")
    recipe = parse_recipe(
        {
            "student": {"model": str(toy / "student")},
            "teacher": {"type": "local", "model": str(toy / "teacher")},
            "prompts": {"path": str(toy / "train.jsonl"), "answer": "answer", "max_tokens": 16},
            "rollout": {"type": "transformers", "max_new_tokens": 16},
            "loss": [{"objective": {"type": "reverse_kl"}}],
        }
    )
    reward = grader(replace(check(recipe, Evaluation), tokenizer=tokenizer))

    def rollout(prompt: list[int], completion: list[int]) -> Rollout:
        n = len(completion)
        trained = [False] * len(prompt) + [True] * n
        return Rollout([*prompt, *completion], trained, [0.0] * n, [0] * n, "stop", 0, {"answer": "7"})

    assert reward(rollout([3], [5, 0])) == 1.0
    assert reward(rollout([3, 1], [5, 0])) == 0.0, "the thought never ended"
    assert reward(rollout([3, 1], [3, 2, 5, 0])) == 1.0
