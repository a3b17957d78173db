"""What must hold between student and teacher: before any model loads, and before step 1."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from opd.batch import Prompt, Rollout
from opd.distributed import Ranks
from opd.errors import ModelError, reason_of
from opd.head.pay import DensePay
from opd.head.settings import HeadSettings
from opd.head.weights import HiddenStates
from opd.lora import effective_weight
from opd.objectives import OBJECTIVES
from opd.packing import Layout, lay_out, piece_of
from opd.reading import backbone, head_weights, plain_head, trained_states
from opd.student import Student
from opd.teacher.local import LocalTeacher
from opd.ulysses import share_attention


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


def check_reading(model: PreTrainedModel, prompts: list[Prompt], layout: Layout, name: str) -> None:
    """ModelError if our reading of a model (layout, positions, shift, head) does not give its own log-probs.

    Rollouts of unequal length, laid out together, against the plain model on each alone.
    """
    rollouts = [_as_rollout(prompt, cut=i) for i, prompt in enumerate(prompts)]
    batch = lay_out(rollouts, list(range(len(rollouts))), layout=layout).to(model.device)
    head = plain_head(model)
    with torch.no_grad():
        states = HiddenStates(
            trained_states(backbone(model), batch)[0], head_weights(effective_weight(head), head.bias, model.config)
        )
        rows = torch.arange(len(states), device=model.device)
        got_C = states.logits(rows).log_softmax(-1).gather(1, batch.token_id_C[:, None]).squeeze(1)
        plain = [_plain_log_probs(model, rollout) for rollout in rollouts]
    error = float((got_C - torch.cat(plain)).abs().mean())
    if not error < (0.1 if model.dtype == torch.bfloat16 else 1e-3):
        raise ModelError(
            f"{name!r}: our log-probs are {error:.2g} nats from the model's own: positions, shift or head of this "
            "architecture are not understood; please report the model"
        )


def share_checked(model: PreTrainedModel, prompts: list[Prompt], layout: Layout, ranks: Ranks, name: str) -> None:
    """`share_attention`; ModelError on every rank where states of a piece are not the whole's on one. Collective.

    Of something that goes along the sequence beside attention, a piece knows no beginning.
    """
    rollouts = [_as_rollout(prompt, cut=i) for i, prompt in enumerate(prompts)]
    whole = lay_out(rollouts, list(range(len(rollouts))), layout=layout).to(model.device)
    piece = piece_of(whole, ranks.piece, ranks.pieces)
    with torch.no_grad():
        expected_CH = trained_states(backbone(model), whole)[0][torch.isin(whole.row_C, piece.row_C)]
        share_attention(model, ranks.sequence_group)
        try:
            got_CH = trained_states(backbone(model), piece)[0]
        except AssertionError as error:  # DeepSpeed's, of shapes and positions, on every rank
            raise ModelError(f"{name!r}: {reason_of(error)}; set sequence_parallel_size to 1") from None
    error = float((got_CH - expected_CH).abs().sum() / expected_CH.abs().sum().clamp_min(1e-12))
    if not ranks.agree(error < (0.1 if model.dtype == torch.bfloat16 else 1e-3)):
        raise ModelError(
            f"{name!r}: hidden states change when {ranks.pieces} ranks share a sequence: something of this "
            "architecture goes along the sequence beside attention; set sequence_parallel_size to 1"
        )


def _plain_log_probs(model: PreTrainedModel, rollout: Rollout) -> torch.Tensor:
    ids = torch.tensor([rollout.token_ids], device=model.device)
    log_p_TV = model(ids, use_cache=False).logits[0].float().log_softmax(-1)
    at = torch.tensor(rollout.positions, device=model.device)
    return log_p_TV[at - 1, ids[0, at]]


def self_distillation_loss(student: Student, prompts: list[Prompt], layout: Layout) -> float:
    """Reverse KL of the student to itself through the teacher's whole path, nats: 0 if both read a batch alike.

    The prompts' own second halves stand in for completions. Runs before the student is sharded.
    """
    rollouts = [_as_rollout(prompt) for prompt in prompts]
    batch = lay_out(rollouts, list(range(len(rollouts))), layout=layout).to(student.head.weight.device)
    weight_C = torch.full((len(batch.row_C),), 1 / max(1, len(batch.row_C)), device=batch.row_C.device)
    with torch.no_grad():
        scores = LocalTeacher(student.model).score(batch)
        paying = [DensePay(OBJECTIVES["reverse_kl"](), weight_C)]
        loss, _ = student(batch, scores, HeadSettings(), pays_of=lambda _: paying)
    return float(loss)


def check_self_distillation(student: Student, prompts: list[Prompt], layout: Layout) -> None:
    """ModelError if the student as its own teacher pays 1e-6 nats a token or more."""
    loss = self_distillation_loss(student, prompts, layout)
    if not loss < 1e-6:
        raise ModelError(
            f"the student as its own teacher has a loss of {loss:.2e} nats a token, not 0: student and teacher read "
            "a batch differently; please report the model"
        )


def _as_rollout(prompt: Prompt, *, cut: int = 0) -> Rollout:
    """A prompt's second half as if it were a completion, without the last `cut` tokens."""
    ids = prompt.token_ids[: max(2, len(prompt.token_ids) - cut)]
    half = max(1, len(ids) // 2)
    trained = len(ids) - half
    return Rollout(ids, [False] * half + [True] * trained, [0.0] * trained, [0] * trained, finish="stop", group=0)
