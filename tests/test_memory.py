"""Counted before a weight is loaded: what the loaded models and their optimizer then have."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import GPT2Config, Mamba2Config

from opd.config import Recipe
from opd.head.cost import HeadShape, loss_cost, rank_bytes
from opd.lora import attach
from opd.memory import activation_bytes, bytes_of, memory_lines, sizes_of
from opd.models import load_model
from opd.parts import optimizer_for
from opd.recipe_text import parse_recipe
from opd.student import Student
from opd.teacher.placement import Placement, head_shape


def recipe(toy: Path, *, adapted: bool, precision: str = "fp32", **more) -> Recipe:
    lora = {"rank": 4, "targets": ["all-linear", "lm_head"]} if adapted else None
    return parse_recipe(
        {
            "student": {"model": str(toy / "student"), "lora": lora} | more.pop("student", {}),
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
    held = bytes_of(asked, sizes_of(asked), ranks=1, zero_stage=0)
    assert held.pop("the loss head") == round(
        loss_cost(head_shape(asked, model.config, teacher.config, 1), "kept").peak_extra_bytes
    )
    assert held == {
        "student": sum(p.nbytes for p in student.parameters()),
        "its gradient": sum(p.grad.nbytes for p in student.parameters() if p.grad is not None),
        "optimizer": states,
        "teacher": sum(p.nbytes for p in teacher.parameters()),
        "engine": merged,
    }


@pytest.mark.parametrize(("stage", "shared"), [(0, 0), (1, 12), (2, 16), (3, 18)])
def test_each_stage_shares_more_and_bf16_has_masters(toy, stage, shared, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    asked = recipe(
        toy, adapted=False, precision="bf16", rollout={"type": "vllm"}, teacher={"shard": "zero3"} if stage == 3 else {}
    )
    sizes = sizes_of(asked)
    held = bytes_of(asked, sizes, ranks=4, zero_stage=stage)
    a_weight = 18 - shared + shared / 4
    teacher = sizes.teacher * 2 // (4 if stage == 3 else 1)
    head = held.pop("the loss head")
    assert sum(held.values()) == pytest.approx(sizes.student * a_weight + teacher)
    assert head == bytes_of(asked, sizes, ranks=4, zero_stage=0)["the loss head"]


def test_the_head_takes_its_formula_and_a_cut_one_leaves_a_rank_its_part(toy, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    by_vocabulary = Placement(4, 100, "as said")
    shape = HeadShape(rows=64, hidden=32, teacher_hidden=48, vocabulary=100)
    monkeypatch.setattr("opd.memory.head_shape", lambda *_: shape)
    whole = bytes_of(recipe(toy, adapted=False), sizes_of(recipe(toy, adapted=False)), ranks=4, zero_stage=1)
    monkeypatch.setattr("opd.memory.place_head", lambda *_: by_vocabulary)
    cut = bytes_of(recipe(toy, adapted=False), sizes_of(recipe(toy, adapted=False)), ranks=4, zero_stage=1)
    assert whole["teacher"] - cut["teacher"] == 75 * 48 * 4
    assert cut["the loss head"] == rank_bytes(shape, 4) - 25 * 48 * 4
    rows = recipe(toy, adapted=False, loss=[{"objective": {"type": "uskd"}}])
    monkeypatch.setattr("opd.memory.place_head", lambda *_: Placement(1, 100, "rows"))
    tiles = bytes_of(rows, sizes_of(rows), ranks=1, zero_stage=1)
    assert tiles["the loss head"] == round(loss_cost(shape, "tiles").peak_extra_bytes)


def test_zero_copies_fp32_masters_and_an_objective_may_want_the_student_at_start(toy, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    prompts = {"path": str(toy / "train.jsonl"), "answer": "answer"}
    pairs = {"prompts": prompts, "loss": [{"objective": {"type": "tgdpo"}}]}
    plain, paired = recipe(toy, adapted=False), recipe(toy, adapted=False, **pairs)
    sizes = sizes_of(plain)
    first, alone, start = (
        bytes_of(asked, sizes, ranks=1, zero_stage=stage) for asked, stage in ((plain, 1), (plain, 0), (paired, 1))
    )
    assert first["optimizer"] - alone["optimizer"] == 4 * sizes.trained
    assert start == first | {"student at start": 4 * sizes.student}


def test_on_a_gpu_vllm_sleeps_or_takes_its_share(toy, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda _: SimpleNamespace(total_memory=1000))
    held = {}
    for sleeps in (True, False):
        asked = recipe(toy, adapted=False, rollout={"type": "vllm", "sleep": sleeps, "gpu_memory_share": 0.25})
        held[sleeps] = bytes_of(asked, sizes_of(asked), ranks=1, zero_stage=1)
    assert held[False] == held[True] | {"engine": 250} and "engine" not in held[True]
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda _: SimpleNamespace(total_memory=8 << 30))
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "a card")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    asked = recipe(toy, adapted=False, rollout={"type": "vllm", "gpu_memory_share": 0.25})
    _, holds, _, where = memory_lines(asked, ranks=1, zero_stage=1)
    assert "; while it samples, vLLM takes 2.0 GiB beside it; asleep, 0.0 of each rank's main memory" in holds
    assert where == "on 2 × a card"
    copy = recipe(toy, adapted=False)
    assert bytes_of(copy, sizes_of(copy), ranks=1, zero_stage=1)["engine"] == 4 * sizes_of(copy).student


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_backward_pass_keeps_at_least_what_is_said_and_not_three_times_that(toy, checkpointing: bool):
    asked = recipe(toy, adapted=False, student={"gradient_checkpointing": checkpointing}, token_budget=4096)
    model = load_model(asked.student.model, dtype=torch.float32).train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    weights, kept = {p.untyped_storage().data_ptr() for p in model.parameters()}, {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        out = model.model(torch.zeros(128, 32, dtype=torch.long), use_cache=False).last_hidden_state
    del out
    seen = sum(size for place, size in kept.items() if place not in weights)
    least = activation_bytes(asked, ranks=1)
    if checkpointing:  # one block at a time is kept in the backward pass, which this does not make
        one = activation_bytes(
            recipe(toy, adapted=False, student={"gradient_checkpointing": "offload"}, token_budget=4096), ranks=1
        )
        least -= one
    assert least <= seen < 3 * least


def test_a_model_without_attention_or_gates_keeps_something_too(toy, monkeypatch):
    mamba = Mamba2Config(hidden_size=64, num_heads=8, head_dim=16, num_hidden_layers=2, vocab_size=17, n_groups=1)
    for config in (mamba, GPT2Config(n_layer=2, n_embd=32, n_head=4, vocab_size=17, bos_token_id=0, eos_token_id=0)):
        monkeypatch.setattr("opd.memory.load_config", lambda *_, config=config: config)
        assert activation_bytes(recipe(toy, adapted=False), ranks=1) > 0


def test_a_card_that_is_too_small_for_what_is_certain_is_said(toy, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "a card")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    said = {}
    for size in (1 << 16, 8 << 30):
        card = SimpleNamespace(total_memory=size)
        monkeypatch.setattr("torch.cuda.get_device_properties", lambda _, card=card: card)
        asked = recipe(toy, adapted=False, rollout={"type": "vllm", "gpu_memory_share": 0.9}, token_budget=1 << 16)
        said[size] = [line for line in memory_lines(asked, ranks=1, zero_stage=1) if line.startswith("warning: ")]
    assert said.pop(8 << 30) == []
    ((trains, samples),) = said.values()
    monkeypatch.setattr("opd.memory.offloads_optimizer", lambda: True)
    monkeypatch.setattr("opd.memory.activation_bytes", lambda recipe, *, ranks: 0)
    held = bytes_of(asked, sizes_of(asked), ranks=1, zero_stage=1)
    on_card = sum(held.values()) - held["its gradient"] - held["optimizer"]
    tight = SimpleNamespace(total_memory=on_card)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda _: tight)
    lines = memory_lines(asked, ranks=1, zero_stage=1)
    assert not any("while it trains" in line for line in lines), "what lies in main memory does not count"
    assert trains.startswith("warning: while it trains a rank needs ")
    assert samples.startswith("warning: while it samples a rank needs 0.0 GiB, and this GPU has 0.0; lower")


def test_the_words_name_what_trains_and_what_is_held(toy, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    trains, holds, stored, where = memory_lines(recipe(toy, adapted=True), ranks=1, zero_stage=1)
    assert trains.startswith("trains ") and trains.endswith(" weights, in adapters beside 15 of its layers")
    assert (
        holds.startswith("a rank holds about 0.1 GiB (student 0.00, ") and "), and at least 0.1 of activations" in holds
    )
    assert stored.startswith("a checkpoint takes about 0.0 GB, and checkpoints.keep + 1 lie there")
    assert where.startswith("on CPU, ")
    _, whole, _, _ = memory_lines(recipe(toy, adapted=True), ranks=2, zero_stage=3)
    assert "while it starts, the student whole, 0.00" in whole and "whole" not in holds
