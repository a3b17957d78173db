"""Counted before a weight is loaded: what the loaded models and their optimizer then have."""

from pathlib import Path

import pytest
import torch

from opd.config import Recipe
from opd.lora import attach
from opd.memory import bytes_of, needed, sizes_of
from opd.models import load_model
from opd.parts import optimizer_for
from opd.recipe_text import parse_recipe
from opd.student import Student


def recipe(toy: Path, *, adapted: bool, precision: str = "fp32", **more) -> Recipe:
    lora = {"rank": 4, "targets": ["all-linear", "lm_head"]} if adapted else None
    return parse_recipe(
        {
            "student": {"model": str(toy / "student"), "lora": lora},
            "teacher": {"model": str(toy / "teacher")} | more.pop("teacher", {}),
            "prompts": {"path": str(toy / "train.jsonl")},
            "rollout": {"type": "transformers"},
            "loss": [{"objective": {"type": "reverse_kl"}}],
            "precision": precision,
        }
        | more
    )


@pytest.mark.parametrize("adapted", [False, True])
def test_in_one_process_it_is_what_weights_gradient_and_states_take(toy, adapted, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    asked = recipe(toy, adapted=adapted)
    model = load_model(asked.student.model, dtype=torch.float32)
    merged = sum(p.nbytes for p in model.parameters())
    if adapted:
        attach(model, asked.student.lora, asked.student, seed=0)
    student = Student(model, tokens=10)
    optimizer = optimizer_for(student, asked)
    for parameter in student.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    states = sum(t.nbytes for s in optimizer.state.values() for name, t in s.items() if name.startswith("exp_avg"))
    teacher = load_model(asked.teacher.model, dtype=torch.float32)
    assert bytes_of(asked, sizes_of(asked), ranks=1, zero_stage=1) == {
        "student": sum(p.nbytes for p in student.parameters()),
        "its gradient": sum(p.grad.nbytes for p in student.parameters() if p.grad is not None),
        "optimizer": states,
        "teacher": sum(p.nbytes for p in teacher.parameters()),
        "the loss head": asked.tile_mib << 20,
        "engine": merged,
    }


@pytest.mark.parametrize(("stage", "shared"), [(0, 0), (1, 12), (2, 16), (3, 18)])
def test_each_stage_shares_more_and_bf16_has_masters(toy, stage, shared, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    asked = recipe(toy, adapted=False, precision="bf16", teacher={"shard": "zero3"} if stage == 3 else {})
    sizes = sizes_of(asked)
    held = bytes_of(asked, sizes, ranks=4, zero_stage=stage)
    a_weight = 18 - shared + shared / 4
    teacher = sizes.teacher * 2 // (4 if stage == 3 else 1)
    assert sum(held.values()) == pytest.approx(sizes.student * a_weight + teacher + (asked.tile_mib << 20))
    assert "engine" not in held  # asleep while the trainer works


def test_the_words_name_what_trains_and_what_is_held(toy, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    trains, holds = needed(recipe(toy, adapted=True), ranks=1, zero_stage=1)
    assert trains.startswith("trains ") and trains.endswith(" weights, in adapters beside 15 of its layers")
    assert holds.startswith("a rank holds at least 0.1 GiB (student 0.00, ") and holds.endswith("), and activations")
