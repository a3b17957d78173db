"""What student and teacher declare to end a turn, and what both do where rollouts end, measured before step 1."""

from __future__ import annotations

import warnings
from dataclasses import replace

import torch
from transformers import PreTrainedTokenizerBase

from opd import schedules
from opd.batch import Rollout
from opd.config import Recipe
from opd.rollout.source import Source
from opd.step import Run, gather, head_settings, micro_batches, score
from opd.stop import StopTokens

STOP_ROLLOUTS = 32
"""Rollouts on which stopping is measured, at most."""


def say_stops(run: Run, stop: StopTokens, source: Source, tokenizer: PreTrainedTokenizerBase) -> None:
    """What student and teacher declare and do where rollouts end, measured before step 1; warns where they differ."""
    lines, differs = stop_report(run, stop, probe(run.recipe, source), tokenizer)
    if run.ranks.is_main:
        print("\n".join(lines), flush=True)
        if differs:
            warnings.warn(lines[-1], stacklevel=2)


def probe(recipe: Recipe, source: Source) -> list[Rollout]:
    """Rollouts of the first step on which stopping is measured: one a prompt, and few."""
    few = schedules.at(recipe, 0).rollout.model_copy(update={"samples_per_prompt": 1})
    return source(few, 0)[:STOP_ROLLOUTS]


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
