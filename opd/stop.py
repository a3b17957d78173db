"""Which ids end a turn: what student and teacher declare, and what becomes of it."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from opd.config import Recipe
from opd.errors import DataError
from opd.models import load_config

ANOTHER_PROTOCOL = ("<|eom_id|>", "<|call|>", "<|observation|>")
"""Declared end tokens that mean something else than the end of an answer (a tool is to be called)."""


@dataclass(frozen=True)
class StopTokens:
    """The ids that student and teacher declare to end a turn; one outcome together where `merged`.

    apart: ids that are never merged, because they mean something else.
    """

    student: list[int]
    teacher: list[int]
    merged: bool
    apart: tuple[int, ...] = ()

    @property
    def every(self) -> tuple[int, ...]:
        """Both models' ids that mean the end of an answer, ascending."""
        return tuple(sorted({*self.student, *self.teacher} - {*self.apart}))

    def within(self, vocabulary: int) -> tuple[int, ...]:
        """Those of `every` that both heads know."""
        return tuple(token for token in self.every if token < vocabulary)

    @property
    def ends_rollouts(self) -> list[int]:
        """What a rollout stops at: with a stop class any of its tokens, else the student's own."""
        return sorted({*self.student, *self.every}) if self.merged else self.student

    def words(self, tokenizer: PreTrainedTokenizerBase) -> str:
        """One line: what both models declare, and what becomes of it."""

        def named(ids: list[int]) -> str:
            return ", ".join(f"{tokenizer.convert_ids_to_tokens(i)!r} ({i})" for i in ids)

        if self.student == self.teacher and len(self.every) == 1:
            return f"student and teacher end a turn with {named(self.student)}"
        fate = "one outcome in every statistic and objective" if self.merged else "kept apart (stop_class: false)"
        if self.merged and self.apart:
            fate += f", but for {named(list(self.apart))}, which means something else"
        return f"the student ends a turn with {named(self.student)}, the teacher with {named(self.teacher)}: {fate}"


def stops_of(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> StopTokens:
    """What both models of a recipe declare; tokens of another protocol stay apart."""
    return StopTokens(
        stop_tokens(tokenizer, recipe.student.model, recipe.student.revision),
        stop_tokens(teacher, recipe.teacher.model, recipe.teacher.revision),
        merged=recipe.stop_class,
        apart=tuple(i for token in ANOTHER_PROTOCOL if (i := tokenizer.get_vocab().get(token)) is not None),
    )


def stop_tokens(tokenizer: PreTrainedTokenizerBase, model: str, revision: str | None = None) -> list[int]:
    """The ids that end a turn: the tokenizer's, and those of the model's generation config, or else of its config."""
    from transformers import GenerationConfig

    try:
        declared = GenerationConfig.from_pretrained(model, revision=revision).eos_token_id
    except OSError:
        declared = GenerationConfig.from_model_config(load_config(model, revision)).eos_token_id
    ids = {tokenizer.eos_token_id, *(declared if isinstance(declared, list) else [declared])}
    if not (found := sorted(i for i in ids if i is not None)):
        raise DataError(f"the tokenizer of {model!r} declares no end token; set eos_token in its folder")
    return found
