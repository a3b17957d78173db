"""What must hold between student and teacher: before any model loads, and before step 1."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from opd.batch import Prompt, Rollout
from opd.errors import ModelError
from opd.head.loss import Payment
from opd.models import backbone, head_weights
from opd.objectives import OBJECTIVES
from opd.packing import Layout, lay_out
from opd.student import Student
from opd.teacher.local import LocalTeacher


def check_tokenizers(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> None:
    """Every token has the same id in both; ModelError names one that has not."""
    ours, theirs = student.get_vocab(), teacher.get_vocab()
    if ours == theirs:
        return
    token = min(set(ours.items()) ^ set(theirs.items()), key=lambda item: (item[1], item[0]))[0]
    raise ModelError(
        f"teacher and student have different tokenizers: token {token!r} is {ours.get(token, 'absent')} in the "
        f"student's and {theirs.get(token, 'absent')} in the teacher's; choose a teacher of the student's family"
    )


def check_vocabularies(tokens: int, *, student: int, teacher: int) -> None:
    """Both heads hold every token of the tokenizer; ModelError otherwise. Padding beyond it may differ."""
    for name, size in {"student": student, "teacher": teacher}.items():
        if size < tokens:
            raise ModelError(
                f"the {name}'s vocabulary of {size} is smaller than its tokenizer's {tokens} tokens; "
                "mend the model folder"
            )


def check_head(model: PreTrainedModel, prompt: Prompt, name: str) -> None:
    """ModelError if our reading of the model's head (bias, cap, scale) does not give the model's own logits."""
    ids = torch.tensor([prompt.token_ids[:8]], device=model.device)
    linear = model.get_output_embeddings()
    with torch.no_grad():
        expected_TV = model(ids, use_cache=False).logits[0].float()
        hidden_TH = backbone(model)(ids, use_cache=False).last_hidden_state[0]
        logits_TV = head_weights(linear.weight, linear.bias, model.config).logits(hidden_TH).float()
    error = float((logits_TV - expected_TV).norm() / expected_TV.norm().clamp_min(1e-12))
    if not error < 0.02:
        raise ModelError(
            f"{name!r}: hidden states and lm_head give other logits than the model (relative error {error:.2g}): "
            "this architecture's head is not understood; please report the model"
        )


def self_distillation_loss(student: Student, prompts: list[Prompt], layout: Layout) -> float:
    """Reverse KL of the student to itself through the teacher's whole path, nats: 0 if positions and shift agree.

    The prompts' own second halves stand in for completions. Runs before the student is sharded.
    """
    rollouts = [_as_rollout(prompt) for prompt in prompts]
    batch = lay_out(rollouts, list(range(len(rollouts))), layout=layout).to(student.head.weight.device)
    weight_C = torch.full((len(batch.row_C),), 1 / max(1, len(batch.row_C)), device=batch.row_C.device)
    with torch.no_grad():
        scores = LocalTeacher(student.model).score(batch)
        loss, _ = student(batch, scores, choose=lambda _: [Payment(OBJECTIVES["reverse_kl"](), weight_C)])
    return float(loss)


def check_self_distillation(student: Student, prompts: list[Prompt], layout: Layout) -> None:
    """ModelError if the student as its own teacher pays 1e-6 nats a token or more."""
    loss = self_distillation_loss(student, prompts, layout)
    if not loss < 1e-6:
        raise ModelError(
            f"the student as its own teacher has a loss of {loss:.2e} nats a token, not 0: positions or shift of this "
            "architecture are not understood; please report the model"
        )


def _as_rollout(prompt: Prompt) -> Rollout:
    half = max(1, len(prompt.token_ids) // 2)
    trained = len(prompt.token_ids) - half
    return Rollout(
        prompt.token_ids, [False] * half + [True] * trained, [0.0] * trained, [0] * trained, finish="stop", group=0
    )
