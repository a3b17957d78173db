"""Which ids end a turn: what student and teacher declare, what becomes of it, and what both do where rollouts end."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedTokenizerBase

from opd import schedules
from opd.batch import Rollout
from opd.config import Recipe
from opd.errors import DataError
from opd.rollout.source import Source
from opd.step import Run, gather, head_settings, micro_batches, score

STOP_ROLLOUTS = 32
"""Rollouts on which stopping is measured before step 1."""

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
    """The ids that end a turn: the tokenizer's, and those of the model's generation config."""
    from transformers import GenerationConfig

    ids = {tokenizer.eos_token_id}
    try:
        declared = GenerationConfig.from_pretrained(model, revision=revision).eos_token_id
        ids |= set(declared if isinstance(declared, list) else [declared])
    except OSError:
        pass
    if not (found := sorted(i for i in ids if i is not None)):
        raise DataError(f"the tokenizer of {model!r} declares no end token; set eos_token in its folder")
    return found


def say_stops(run: Run, stop: StopTokens, source: Source, tokenizer: PreTrainedTokenizerBase) -> None:
    """What student and teacher declare and do where rollouts end, measured before step 1; warns where they differ."""
    few = schedules.at(run.recipe, 0).rollout.model_copy(update={"samples_per_prompt": 1})
    lines, differs = stop_report(run, stop, source(few, 0)[:STOP_ROLLOUTS], tokenizer)
    if run.ranks.is_main:
        print("\n".join(lines), flush=True)
        if differs:
            warnings.warn(lines[-1], stacklevel=2)


def stop_report(
    run: Run, stop: StopTokens, rollouts: list[Rollout], tokenizer: PreTrainedTokenizerBase
) -> tuple[list[str], bool]:
    """Lines that say what both models declare and how much each wants to stop where a rollout did; True: they differ.

    A student that ends with one token and a teacher that ends with another give each other's token next to nothing:
    distillation then deletes the student's stop, and lengths run to the cap.
    """
    ended = [r for r in rollouts if r.finish == "stop" and r.length]
    lines = [stop.words(tokenizer)]
    if not ended:
        return [*lines, f"no rollout of {len(rollouts)} ended by itself: stopping could not be measured"], False
    raw = replace(head_settings(schedules.at(run.recipe, 0), run.stop), merge_stop=False, candidates=0)
    names = frozenset({"student_stop_mass", "teacher_stop_mass", "student_logprob", "teacher_logprob"})
    batches = micro_batches(run, ended)
    run.teacher.start(ended)
    columns = gather(run.ranks, batches, score(run, batches, names, raw)[1], sum(r.length for r in ended))
    last = torch.tensor([r.length for r in ended]).cumsum(0) - 1
    own = {who: float(columns[f"{who}_logprob"][last].double().exp().mean()) for who in ("student", "teacher")}
    mass = {who: float(columns[f"{who}_stop_mass"][last].double().mean()) for who in ("student", "teacher")}
    lines.append(
        f"at the ends of {len(ended)} rollouts the student gives its end token {own['student']:.3g} and all end tokens "
        f"{mass['student']:.3g}, the teacher {own['teacher']:.3g} and {mass['teacher']:.3g}"
    )
    effective = mass if stop.merged else own
    differs = effective["teacher"] < 0.01 * effective["student"]
    if differs:
        lines[-1] += (
            "; the teacher does not end here as the student does, and training would delete the student's stop: "
        )
        lines[-1] += (
            "stop_class=true" if not stop.merged and mass["teacher"] > 0.1 else "mend the end tokens they declare"
        )
    return lines, differs
