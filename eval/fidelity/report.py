"""The fidelity of one student to one teacher on one task."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import partial

from eval.fidelity.answers import AnswerFidelity, answer_fidelity
from eval.fidelity.rationales import rationale_bleu, rationale_self
from eval.fidelity.tokens import Text, token_fidelity
from eval.identity import key_of, short_name
from eval.runner import Evaluated, Host, Study
from eval.samples import Sample
from opd.batch import Prompt
from opd.errors import ModelError
from opd.models import DTYPES, load_model, token_count
from opd.report.progress import Progress
from opd.run import write_atomic
from opd.teacher.check import check_reading, check_tokenizers
from opd.teacher.local import LocalTeacher

TEXTS = 16
"""Problems on whose first answers the two models are compared token by token."""

Tokens = dict[str, dict[str, dict[str, float]]]
"""Whose text → measure → {score, stderr, n}."""


@dataclass(frozen=True)
class Fidelity:
    """Answers, tokens on the student's and on the teacher's text, and rationales.

    tokens: None where the models' tokenizers differ. bleu_self: the teacher's second answers against its first, None
    for one answer a problem.
    """

    student: str
    teacher: str
    task: str
    answers: AnswerFidelity
    tokens: Tokens | None
    bleu: float
    bleu_self: float | None


def fidelity(student: Evaluated, teacher: Evaluated, host: Host) -> Fidelity:
    """Compare two evaluated models; where their tokenizers agree, token by token, which loads both."""
    our_samples, their_samples = student.study.file.read(), teacher.study.file.read()
    theirs = teacher.result
    return Fidelity(
        student=student.result.model,
        teacher=theirs.model,
        task=theirs.task,
        answers=answer_fidelity(student.result.graded, theirs.graded, greedy=not theirs.identity["temperature"]),
        tokens=_tokens(student.study, teacher.study, our_samples, their_samples, host),
        bleu=rationale_bleu(our_samples, their_samples),
        bleu_self=rationale_self(their_samples),
    )


def _tokens(
    student: Study, teacher: Study, our_samples: list[Sample], their_samples: list[Sample], host: Host
) -> Tokens | None:
    """Measured once and kept beside the student's answers, under a name that depends on all that is compared."""
    try:
        check_tokenizers(student.tokenizer, teacher.tokenizer)
    except ModelError:
        return None
    texts = {
        whose: _texts(samples, student.asked.prompts, teacher.asked.prompts)
        for whose, samples in (("student", our_samples), ("teacher", their_samples))
    }
    compared = {whose: [asdict(text) for text in of_one] for whose, of_one in texts.items()}
    key = key_of({"who": [student.file.identity, teacher.file.identity], "texts": compared})
    path = student.folder / f"tokens-{key}.json"
    if not path.exists():
        models = [_loaded(study, host) for study in (student, teacher)]
        size = token_count(student.tokenizer, min(model.vocabulary for model in models))
        with Progress(sum(map(len, texts.values())), unit="text") as progress:
            name = f"{short_name(student.model)} beside {short_name(teacher.model)}, {student.asked.task.name}"
            seen = partial(progress.advance, name)
            found = {whose: token_fidelity(*models, of_one, tokens=size, seen=seen) for whose, of_one in texts.items()}
        write_atomic(path, json.dumps(found, indent=1) + "\n")
    return json.loads(path.read_text())


def _texts(samples: list[Sample], ours: list[Prompt], theirs: list[Prompt]) -> list[Text]:
    """The first answers of at most TEXTS problems, after each model's own prompt."""
    first = [sample for sample in samples if sample.token_ids][:TEXTS]
    return [Text(ours[s.problem].token_ids, theirs[s.problem].token_ids, s.token_ids) for s in first]


def _loaded(study: Study, host: Host) -> LocalTeacher:
    model = load_model(study.model, dtype=DTYPES[host.precision]).to(host.device).eval().requires_grad_(False)
    check_reading(model, study.asked.prompts[:4], "rows", study.model)
    return LocalTeacher(model)
