"""How alike two models write."""

from __future__ import annotations

from sacrebleu import corpus_bleu

from eval.samples import Sample


def rationale_bleu(student: list[Sample], teacher: list[Sample]) -> float:
    """BLEU (0 to 100; Papineni et al., 2002, as sacrebleu computes it) of each first answer against the teacher's."""
    return _bleu(_texts(student, 0), _texts(teacher, 0))


def rationale_self(teacher: list[Sample]) -> float | None:
    """The same of the teacher's second answers against its first; None where each problem has one."""
    second = _texts(teacher, 1)
    return _bleu(second, _texts(teacher, 0)) if second else None


def _bleu(ours: list[str], theirs: list[str]) -> float:
    return corpus_bleu(ours, [theirs]).score


def _texts(samples: list[Sample], number: int) -> list[str]:
    return [sample.text for sample in samples if sample.sample == number]
