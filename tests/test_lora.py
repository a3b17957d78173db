"""Adapters: the gradient of plain peft and autograd, merged weights beside a base that stays, exports that load."""

from __future__ import annotations

from pathlib import Path

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from opd.batch import Prompt
from opd.errors import RecipeError
from opd.head import loss as head_loss
from opd.lora import LoraSettings, adapters, attach, effective_weight, plain_parameters, rate_warning, targeted
from opd.model_spec import ModelSettings
from opd.parts import optimizer_for
from opd.step import StepResult
from opd.student import Student
from opd.teacher.check import self_distillation_loss
from opd.teacher.local import LocalTeacher
from recipes.quickstart.make_models import character_tokenizer
from tests import cases

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
MLP = ["gate_proj", "up_proj", "down_proj"]
PLACES = [ATTENTION, MLP, ["lm_head"], ["all-linear", "lm_head"]]


def by_peft(targets: list[str], student: Student, *, tied: bool = False) -> LlamaForCausalLM:
    """Plain transformers wrapped by peft's own call, with the student's A and B."""
    names = [name for t in targets for name in (ATTENTION + MLP if t == "all-linear" else [t])]
    config = peft.LoraConfig(r=2, lora_alpha=3, target_modules=names)
    wrapped = peft.get_peft_model(cases.model(1, hidden=16, tied=tied), config, autocast_adapter_dtype=False)
    plain, ours = wrapped.base_model.model, adapters(student.model)
    theirs = adapters(plain)
    assert theirs.keys() == ours.keys()
    with torch.no_grad():
        for name, adapter in theirs.items():
            adapter.lora_A.copy_(ours[name].lora_A), adapter.lora_B.copy_(ours[name].lora_B)
    return plain


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {f"{n}.{part}": getattr(a, part).grad for n, a in adapters(model).items() for part in ("lora_A", "lora_B")}


def stepped(name: str, student: Student, **more) -> StepResult:
    return cases.taken(cases.run(cases.recipe(name, **more), trainer=cases.PlainTrainer(student)), cases.rollouts())


@pytest.mark.parametrize("name", ["all", "soft_or_batch", "sampled", "tsdkd"])
@pytest.mark.parametrize("targets", PLACES, ids="-".join)
def test_loss_and_gradient_equal_peft_and_plain_autograd(targets: list[str], name: str):
    student = cases.adapted(targets)
    outcome, plain = stepped(name, student, token_budget=64), by_peft(targets, student)
    loss = cases.REFERENCES[name](plain, cases.model(2, hidden=24), cases.rollouts())
    loss.backward()
    assert abs(outcome.metrics["loss"] - loss.item()) < 1e-9
    assert cases.relative_error(gradients(student.model), gradients(plain)) < 1e-9
    trains = {id(p) for group in optimizer_for(student, cases.recipe()).param_groups for p in group["params"]}
    assert trains == {id(p) for p in student.parameters() if p.grad is not None}
    assert all(p.grad is None for p in plain_parameters(student.model).values())


def test_a_frozen_tied_head_under_adapters_has_the_same_gradient():
    student = cases.adapted(["all-linear"], tied=True)
    stepped("all", student)
    plain = by_peft(["all-linear"], student, tied=True)
    cases.REFERENCES["all"](plain, cases.model(2, hidden=24), cases.rollouts()).backward()
    assert cases.relative_error(gradients(student.model), gradients(plain)) < 1e-9


def test_gradient_checkpointing_does_not_change_the_gradient():
    """The first layer's input has no gradient: nothing below it trains."""
    plain, student = cases.adapted(ATTENTION), cases.adapted(ATTENTION)
    student.model.gradient_checkpointing_enable({"use_reentrant": False})
    for each in (plain, student):
        stepped("all", each)
    assert cases.relative_error(gradients(student.model), gradients(plain.model)) < 1e-12


@pytest.mark.parametrize(("targets", "wants"), [(ATTENTION, False), (["lm_head"], True)], ids=["below", "head"])
def test_only_a_head_with_an_adapter_takes_memory_for_its_gradient(targets, wants, monkeypatch):
    class Watched(head_loss.Gradients):
        def __init__(self, *given, **more):
            super().__init__(*given, **more)
            seen.append(self.weight_VH is not None)

    seen = []
    monkeypatch.setattr(head_loss, "Gradients", Watched)
    stepped("soft_or_batch", cases.adapted(targets), token_budget=64)
    assert len(seen) > 1 and set(seen) == {wants}


def test_the_stream_is_what_peft_merges_and_the_base_keeps_every_bit():
    student = cases.adapted(["all-linear", "lm_head"], dtype=torch.float32)
    before = {name: p.detach().clone() for name, p in student.model.named_parameters()}
    streamed = {name: weight.clone() for name, weight in student.weights()}
    merged = dict(by_peft(["all-linear", "lm_head"], student).float().named_parameters())
    for name, adapter in adapters(student.model).items():
        whole = merged.pop(f"{name}.base_layer.weight") + 1.5 * adapter.lora_B @ adapter.lora_A
        torch.testing.assert_close(streamed.pop(f"{name}.weight"), whole)
    assert all(torch.equal(weight, merged[name]) for name, weight in streamed.items())
    assert {n for n in merged if "lora_" not in n} == streamed.keys()
    assert all(torch.equal(p, before[name]) for name, p in student.model.named_parameters())


def test_a_fresh_adapter_changes_nothing_and_is_the_same_for_the_same_seed():
    made = [cases.model(1, hidden=16) for _ in range(3)]
    plain = {name: p.detach().clone() for name, p in made[0].named_parameters()}
    state = torch.get_rng_state()
    for model, seed in zip(made, (0, 0, 1), strict=True):
        attach(model, LoraSettings(targets=["q_proj", "lm_head"]), ModelSettings(model="s"), seed=seed)
    assert torch.equal(torch.get_rng_state(), state)
    first, second, other = (torch.cat([a.lora_A.flatten() for a in adapters(m).values()]) for m in made)
    assert torch.equal(first, second) and not torch.equal(first, other)
    assert all(torch.equal(w, plain[name]) for name, w in Student(made[0], tokens=cases.VOCABULARY).weights())


def test_a_trained_heads_adapter_is_read_by_the_check_against_itself():
    """As its own teacher it pays nothing, and its delta is there: a head read without it would not be its teacher's."""
    student = cases.adapted(["lm_head"])
    assert self_distillation_loss(student, [Prompt(0, list(range(3, 12)))], "rows") < 1e-12
    read = LocalTeacher(student.model).head.weight_VH
    assert torch.equal(read, effective_weight(student.head)) and not torch.equal(read, student.head.weight)


@pytest.mark.parametrize(("tied", "targets"), [(False, ["all-linear", "lm_head"]), (True, ["all-linear"])])
def test_adapter_and_merged_export_load_with_the_trained_models_logits(tied: bool, targets: list[str], tmp_path: Path):
    student, ids = cases.adapted(targets, tied=tied, dtype=torch.float32), torch.arange(cases.VOCABULARY)[None]
    base = cases.model(1, hidden=16, tied=tied, dtype=torch.float32)
    base.save_pretrained(tmp_path / "student")
    student.model.peft_config["default"].base_model_name_or_path = str(tmp_path / "student")
    student.export_adapter(tmp_path / "model", character_tokenizer(), writes=True)
    student.export(tmp_path / "model" / "merged", character_tokenizer(), writes=True)
    with torch.no_grad():
        trained = by_peft(targets, student, tied=tied).float()(ids).logits
        adapted = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)(ids).logits
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "model" / "merged")(ids).logits
        start = base(ids).logits
    assert torch.equal(adapted, trained) and float((start - trained).abs().max()) > 0.1
    torch.testing.assert_close(merged, trained, rtol=1e-5, atol=1e-5)
    sizes = [(tmp_path / "model" / f).stat().st_size for f in ("adapter_model.safetensors", "merged/model.safetensors")]
    assert sizes[0] < sizes[1] / 2, "the base model is no part of the adapter"


@pytest.mark.parametrize(
    ("lr", "hidden", "adapted", "words"),
    [
        (1e-6, 4096, True, "low for adapters"),
        (2.8e-5, 4096, True, "low for adapters"),
        (3e-5, 4096, True, None),
        (1e-6, 4096, False, None),
        (1.4e-4, 4096, False, None),
        (2e-4, 4096, False, "adapters' rather than full training's"),
        (1e-3, 96, False, None),
        (5e-5, 96, True, "low for adapters"),
    ],
)
def test_a_rate_of_the_other_kind_is_said(lr: float, hidden: int, adapted: bool, words: str | None):
    """At width 4,096 full training takes 2.9e-5 to 4.7e-5; the quickstart's 1e-3 at width 96 is full training's."""
    said = rate_warning(lr, hidden, adapted=adapted)
    assert said is None if words is None else (words in said and f"{lr:g}" in said and "\n" not in said)


def test_targets_are_layers_by_the_end_of_their_names():
    model = cases.model(1, hidden=16)
    assert targeted(model, ["q_proj"]) == ["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"]
    assert targeted(model, ["1.mlp.up_proj", "lm_head"]) == ["model.layers.1.mlp.up_proj", "lm_head"]
    whole = targeted(model, ["all-linear"])
    assert len(whole) == 14 and "lm_head" not in whole
    assert LoraSettings(targets="all-linear") == LoraSettings()


@pytest.mark.parametrize("target", ["proj", "embed_tokens", "norm", "mlp"])
def test_what_is_no_linear_layer_is_refused(target: str):
    with pytest.raises(RecipeError, match=f"no linear layer of the student is called '{target}'"):
        targeted(cases.model(1, hidden=16), [target])
