"""The fidelity of one student to one teacher on one task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from eval.fidelity.answers import AnswerFidelity, answer_fidelity
from eval.fidelity.rationales import rationale_bleu, rationale_ceiling
from eval.fidelity.tokens import Text, token_fidelity
from eval.results import Result
from eval.runner import Host, Study
from eval.samples import Sample
from opd.errors import ModelError
from opd.models import DTYPES, load_model, token_count
from opd.teacher.check import check_tokenizers
from opd.teacher.local import LocalTeacher

TEXTS = 32
"""Problems on whose first answers the two models are compared token by token."""

Tokens = dict[str, dict[str, dict[str, float]]]
"""Whose text → measure → {score, stderr, n}."""


@dataclass(frozen=True)
class Fidelity:
    """Answers, tokens on the student's and on the teacher's text, and rationales.

    tokens: None where the models' tokenizers differ. bleu_ceiling: the teacher against itself, None for one answer a
    problem.
    """

    student: str
    teacher: str
    task: str
    answers: AnswerFidelity
    tokens: Tokens | None
    bleu: float
    bleu_ceiling: float | None


def fidelity_from(found: dict[str, Any]) -> Fidelity:
    """A fidelity as `asdict` made it."""
    return Fidelity(**found | {"answers": AnswerFidelity(**found["answers"])})


def fidelity(student: tuple[Study, Result], teacher: tuple[Study, Result], host: Host) -> Fidelity:
    """Compare two evaluated models; loads both where their tokenizers agree."""
    (our_study, ours), (their_study, theirs) = student, teacher
    our_samples, their_samples = our_study.file.read(), their_study.file.read()
    return Fidelity(
        student=ours.model,
        teacher=theirs.model,
        task=ours.task,
        answers=answer_fidelity(ours.graded, theirs.graded, greedy=not theirs.identity["temperature"]),
        tokens=_tokens(our_study, their_study, our_samples, their_samples, host),
        bleu=rationale_bleu(our_samples, their_samples),
        bleu_ceiling=rationale_ceiling(their_samples),
    )


def _tokens(
    student: Study, teacher: Study, our_samples: list[Sample], their_samples: list[Sample], host: Host
) -> Tokens | None:
    try:
        check_tokenizers(student.tokenizer, teacher.tokenizer)
    except ModelError:
        return None
    models = [
        LocalTeacher(load_model(study.model, dtype=DTYPES[host.precision]).eval().requires_grad_(False))
        for study in (student, teacher)
    ]
    prompts = [student.asked.prompts, teacher.asked.prompts]
    found = {}
    for whose, samples in (("student", our_samples), ("teacher", their_samples)):
        first = [sample for sample in samples if sample.token_ids][:TEXTS]
        texts = [Text(*(p[sample.problem].token_ids for p in prompts), sample.token_ids) for sample in first]
        found[whose] = token_fidelity(*models, texts, tokens=token_count(student.tokenizer))
    return found
