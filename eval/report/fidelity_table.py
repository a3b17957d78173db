"""The fidelity report as a table."""

from __future__ import annotations

from eval.fidelity import TEXTS, Fidelity
from eval.report.table import Table

CAPTION = (
    "same answer: share of problems to which both give one final answer, right or wrong, ± standard error; κ: that "
    "beyond chance; teacher right, wrong: that share among the problems that the teacher solves, and among the others; "
    "itself: the teacher's next answer beside its own (sampled answers only). top-1: share of tokens before which both "
    "prefer the same next one; KL: nats a token; both on the student's text / on the teacher's, first answers to at "
    f"most {TEXTS} problems. BLEU of the student's answers against the teacher's, and of the teacher's own second ones."
)


def fidelity_table(fidelities: list[Fidelity]) -> Table:
    """A row for each student, teacher and task."""
    heads = (
        "student → teacher", "task", "same answer", "κ", "teacher right", "teacher wrong", "itself", "top-1",
        "KL(S‖T)", "KL(T‖S)", "BLEU", "BLEU itself",
    )  # fmt: skip
    return Table("Fidelity", heads, [_row(fidelity) for fidelity in fidelities], CAPTION)


def _row(f: Fidelity) -> tuple[str, ...]:
    a = f.answers
    return (
        f"{f.student} → {f.teacher}",
        f.task,
        f"{a.observed:.1%} ± {a.stderr:.1%}",
        "–" if a.kappa is None else f"{a.kappa:.2f}",
        _share(a.where_right),
        _share(a.where_wrong),
        _share(a.self_agreement),
        _both(f, "top1", "{:.1%}"),
        _both(f, "reverse_kl", "{:.3f}"),
        _both(f, "forward_kl", "{:.3f}"),
        f"{f.bleu:.1f}",
        "–" if f.bleu_self is None else f"{f.bleu_self:.1f}",
    )


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _both(f: Fidelity, name: str, form: str) -> str:
    if f.tokens is None:
        return "other tokenizer"
    return " / ".join(
        f"{form.format(measures[name]['score'])} ± {form.format(measures[name]['stderr'])}"
        for measures in (f.tokens["student"], f.tokens["teacher"])
    )
