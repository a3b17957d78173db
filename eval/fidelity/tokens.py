"""Agreement token by token, on text that one of both has written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from eval.statistics import ratio
from opd.batch import Rollout
from opd.head.weights import align
from opd.packing import lay_out
from opd.teacher.local import LocalTeacher

ROWS = 256
"""Positions whose distributions are held at once."""


@dataclass(frozen=True)
class Text:
    """One answer as token ids, after the student's prompt and after the teacher's."""

    student_prompt: list[int]
    teacher_prompt: list[int]
    completion: list[int]


def token_fidelity(
    student: LocalTeacher,
    teacher: LocalTeacher,
    texts: list[Text],
    *,
    tokens: int,
    seen: Callable[[], None] = lambda: None,
) -> dict[str, dict[str, float]]:
    """{top1, reverse_kl, forward_kl}, each {score, stderr, n}: means over all tokens of the texts, clustered by text.

    top1: share of tokens at which both models prefer the same next token. reverse_kl: KL(S‖T), forward_kl: KL(T‖S), in
    nats, over whole vocabularies at temperature 1. tokens: the tokenizer's size, see `opd.head.weights.align`. seen: is
    told when a text is done.
    """
    sums = []
    for text in texts:
        sums.append(_compared(student, teacher, text, tokens).sum(0))
        seen()
    sums_T3 = torch.stack(sums)
    counts = [len(text.completion) for text in texts]
    names = ("top1", "reverse_kl", "forward_kl")
    return {name: ratio(sums_T3[:, i].tolist(), counts) for i, name in enumerate(names)}


@torch.no_grad()
def _compared(student: LocalTeacher, teacher: LocalTeacher, text: Text, tokens: int) -> Float[Tensor, "C 3"]:
    """Of each token: whether both would have said the same, KL(S‖T), KL(T‖S)."""
    ours, theirs = (
        model.score(lay_out([_rollout(prompt, text.completion)], [0], layout="rows").to(model.model.device))
        for model, prompt in ((student, text.student_prompt), (teacher, text.teacher_prompt))
    )
    heads = align(ours.head, theirs.head, tokens)
    parts = []
    for rows in torch.arange(len(ours), device=ours.hidden_NH.device).split(ROWS):
        log_s_nV, log_t_nV = (
            head.logits(states.hidden_NH[rows]).log_softmax(-1)
            for states, head in zip((ours, theirs), heads, strict=True)
        )
        gap_nV = log_s_nV - log_t_nV
        same_n = (log_s_nV.argmax(-1) == log_t_nV.argmax(-1)).to(gap_nV.dtype)
        parts.append(torch.stack([same_n, (log_s_nV.exp() * gap_nV).sum(-1), -(log_t_nV.exp() * gap_nV).sum(-1)], -1))
    return torch.cat(parts).double().cpu()


def _rollout(prompt: list[int], completion: list[int]) -> Rollout:
    n, zeros = len(completion), [0] * len(completion)
    return Rollout([*prompt, *completion], [False] * len(prompt) + [True] * n, [0.0] * n, zeros, "stop", 0)
