"""The parts of a run are what its checked recipe says."""

from pathlib import Path

import pytest
import torch.distributed as dist

from eval.runner import Evaluation
from opd.distributed import Ranks
from opd.doctor import check
from opd.parts import load_models, shared_rows
from opd.recipe_text import parse_recipe
from opd.vocab_ranks import RankShard


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
