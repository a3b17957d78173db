"""The main job, read this first: build the parts, run the loop, evaluate, save.

`train` is the whole story.
"""

from __future__ import annotations

import time
import warnings
from typing import Any

from opd import checkpoint, distributed, schedules
from opd.batch import REFERENCE, Rollout
from opd.config import Recipe
from opd.doctor import Checked
from opd.errors import HubError, RunError, TrainingError, UploadError
from opd.evaluation import evaluate_student, evaluate_teacher, export
from opd.hub import push, push_command
from opd.memory import memory_lines
from opd.metrics import Clock, objective_metrics, repetitive
from opd.parts import (
    Parts,
    grader,
    layout_of,
    load_frozen,
    load_models,
    optimizer_for,
    share_sequences,
    shared_rows,
    source_for,
)
from opd.report.card import write_cards
from opd.report.plot import plot_run
from opd.report.progress import Progress, describe
from opd.report.rollouts import record_rollouts
from opd.report.stops import probe, say_stops, stop_report
from opd.report.table import print_summary
from opd.report.trackers import log_samples, start_trackers
from opd.rollout.files import write_rollouts
from opd.rollout.start import engine_type
from opd.run import RunFolder, summary_of
from opd.step import Run, StepResult, step
from opd.teacher.check import check_self_distillation
from opd.teacher.local import LocalTeacher

LARGE_GAP = 0.3
"""Nats that an engine which follows the trainer never lies apart, in bf16 neither."""
SHARED_WITHIN = 60
"""Seconds until a shared disk shows to all machines what one has written."""


def train(checked: Checked, folder: RunFolder, *, resume: bool) -> dict[str, Any]:
    """Run the checked recipe in its folder; returns the summary that it also writes there."""
    recipe = checked.recipe
    parts = build(checked, folder, resume=resume)
    with parts.run.clock("start"):
        first = restore(parts) if resume else 0
    if parts.run.ranks.is_main:
        parts.folder.note_process(first)
    evaluate_student(parts, "student_start", steps=first)
    if first == 0:
        with parts.run.clock("start"):
            say_stops(parts.run, checked.stop, parts.source, checked.tokenizer)
    skips = parts.folder.skips()
    with Progress(recipe.steps, done=first, shown=parts.run.ranks.is_main) as progress:
        for index in range(first, recipe.steps):
            outcome = one_step(parts, index)
            progress.show(index + 1, describe(outcome.metrics))
            skips = skips + 1 if outcome.skipped else 0
            stop_if_lost(parts, outcome.rollouts, index, skips)
            if scores_at(recipe, index + 1):
                evaluate_student(parts, f"step_{index + 1}", steps=index + 1)
            if (index + 1) % recipe.checkpoints.every == 0 or index + 1 == recipe.steps:
                keep = recipe.checkpoints.keep
                with parts.run.clock("checkpoint"):
                    checkpoint.save(parts.folder.checkpoints, parts.run.trainer, steps=index + 1, keep=keep)
    evaluate_student(parts, "student_end", steps=recipe.steps)
    return finish(parts, resumed_from=first)


def scores_at(recipe: Recipe, steps: int) -> bool:
    """Whether the student is scored on the way after so many steps; after the last one it is scored anyway."""
    every = recipe.evaluate.every if recipe.evaluate else 0
    return bool(every) and steps % every == 0 and steps < recipe.steps


def build(checked: Checked, folder: RunFolder, *, resume: bool) -> Parts:
    """Processes, folder, engine, teacher, student: everything that a step works with."""
    recipe = checked.recipe
    accelerator = distributed.start(
        recipe.precision,
        max_grad_norm=recipe.optimizer.max_grad_norm,
        trackers=list(recipe.metrics.trackers),
        folder=folder.path,
    )
    ranks = distributed.Ranks(accelerator.device, recipe.sequence_parallel_size)
    folder = RunFolder(ranks.from_main(folder.path), begins_anew=folder.begins_anew)
    if not ranks.agree(resume) and not ranks.agree(not resume):
        raise RunError(
            f"some ranks see a checkpoint in {str(folder.path)!r} and some don't; put --runs on a shared disk"
        )
    open_folder(folder, checked, ranks, resume=resume)
    start_trackers(accelerator, recipe, folder)
    if ranks.is_main:
        announce(checked, ranks.count, accelerator.state.deepspeed_plugin.zero_stage)
    clock = Clock()
    evaluate_teacher(checked, folder, ranks, clock)
    with clock("start"):
        models = load_models(checked, ranks, samples=recipe.samples)
        reference = None
        if REFERENCE in recipe.needs:
            reference = LocalTeacher(load_frozen(checked, ranks, recipe.student))
        layout, student = layout_of(recipe), models.student
        check_self_distillation(student, checked.probes, layout)
        share_sequences(checked, models, reference, ranks)
        ranks.barrier()  # DeepSpeed's own groups wait a few minutes only, and a rank may still be loading
        trainer = distributed.Trainer(accelerator, student, optimizer_for(student, recipe))
    if models.engine is not None:
        models.engine.follow(trainer.student.weights)
    rows = shared_rows(models)
    grade = grader(checked)
    run = Run(recipe, trainer, models.teacher, ranks, layout, grade, clock, checked.stop.within(rows), rows, reference)
    return Parts(checked, folder, run, models.engine, source_for(checked, models.engine))


def open_folder(folder: RunFolder, checked: Checked, ranks: distributed.Ranks, *, resume: bool) -> None:
    """Make the run's folder, or go on in it; RunError on every rank where one can't. Collective."""
    recipe, data = checked.recipe, checked.prompts.digest
    if not ranks.from_main(ranks.is_main and folder.hold()):
        raise RunError(f"another process trains in {str(folder.path)!r}; wait for its end, or stop it")
    alike = len(set(ranks.gather_objects(data))) == 1 and not (resume and folder.has_other_data(data))
    if not ranks.agree(alike):
        raise RunError(
            f"the prompts are not those that {str(folder.path)!r} began with, and others would be drawn; restore them "
            "(prompts.revision pins a data set) on every machine, or start a new run"
        )
    if ranks.is_main:
        folder.reopen(recipe, data=data) if resume else folder.create(recipe, data=data)
    ranks.barrier()
    if not ranks.agree(any(folder.digest.exists() or time.sleep(1) for _ in range(SHARED_WITHIN))):
        raise RunError(f"some ranks don't see {str(folder.path)!r}, which rank 0 made; put --runs on a shared disk")


def announce(checked: Checked, ranks: int, zero_stage: int) -> None:
    """What was chosen for the user, what trains and what that takes, before anything loads."""
    recipe = checked.recipe
    lines = [f"rollouts by {engine_type(recipe.rollout)}"] if recipe.rollout.type == "auto" else []
    lines += [checked.teacher_head.words] if recipe.teacher.head == "auto" else []
    lines += [f"attention by {recipe.student.attention}, the teacher's by {recipe.teacher.attention}"]
    prompts = checked.prompts
    if prompts.too_long or prompts.duplicates:
        lines += [prompts.words]
    lines += checked.warnings
    print(*lines, *memory_lines(recipe, ranks=ranks, zero_stage=zero_stage), sep="\n", flush=True)


def measure_stops(checked: Checked) -> list[str]:
    """Load both models, sample, and say how student and teacher end a turn; trains nothing and writes nothing."""
    ranks, recipe = distributed.Ranks(distributed.device_type()), checked.recipe
    models = load_models(checked, ranks, samples=recipe.rollout.type != "recorded")
    rows = shared_rows(models)
    stop = checked.stop.within(rows)
    run = Run(recipe, models.student, models.teacher, ranks, layout_of(recipe), None, Clock(), stop, rows)
    rollouts = probe(recipe, source_for(checked, models.engine))
    lines, _ = stop_report(run, checked.stop, rollouts, checked.tokenizer)
    if models.engine is not None:
        models.engine.close()
    return lines


def restore(parts: Parts) -> int:
    """Continue from the newest checkpoint: weights, optimizer, metrics; returns its steps."""
    steps = checkpoint.load(parts.folder.checkpoints, parts.run.trainer)
    if parts.run.ranks.is_main:
        parts.folder.cut_to(steps)
    parts.run.ranks.barrier()
    sync(parts, steps)
    return steps


def one_step(parts: Parts, index: int) -> StepResult:
    """Rollouts, an optimizer step, and the new weights back to the engine; logged."""
    run, recipe = parts.run, schedules.at(parts.run.recipe, index)
    with run.clock("step"):
        with run.clock("generate"):
            rollouts = parts.source(recipe.rollout, index)
        outcome = step(run, recipe, rollouts, index)
        with run.clock("sync"):
            sync(parts, index + 1)
    objectives = [term.objective for term in recipe.loss]
    outcome.metrics.update(objective_metrics(objectives, outcome.table, outcome.weights))
    outcome.metrics.update({f"schedule/{key}": value for key, value in schedules.moving(run.recipe, recipe).items()})
    log_step(parts, outcome, index)
    return outcome


def sync(parts: Parts, version: int) -> None:
    """Stream the student's weights to the engine, which then samples from version `version`."""
    if parts.engine is not None:
        parts.engine.load(parts.run.trainer.student.weights(), version)


def log_step(parts: Parts, outcome: StepResult, index: int) -> None:
    """metrics.jsonl, trackers, a sample of rollouts, and a warning if engine and trainer drift apart."""
    clock = parts.run.clock.take()
    texts = parts.checked.tokenizer.batch_decode([r.completion for r in outcome.rollouts], skip_special_tokens=True)
    outcome.metrics.update(
        clock,
        step=index + 1,
        repetitive=repetitive(texts),
        tokens_per_second=outcome.metrics["tokens"] / clock["time/step"],
    )
    parts.run.trainer.accelerator.log(outcome.metrics, step=index + 1)
    if not parts.run.ranks.is_main:
        return
    parts.folder.append_metrics(outcome.metrics)
    record_rollouts(parts.folder.rollouts, index, outcome, texts, parts.checked)
    if index % parts.checked.recipe.metrics.full_every == 0:
        log_samples(parts.run.trainer.accelerator.trackers, outcome, parts.checked, step=index + 1)
    gap, first = outcome.metrics.get("gap"), parts.folder.first_metrics().get("gap")
    sampled_now = parts.checked.recipe.rollout.type != "recorded"
    least = LARGE_GAP if first is None else min(max(3 * first, 0.1), LARGE_GAP)
    if sampled_now and gap is not None and gap > least:
        was = "no number" if first is None else f"{first:.3f}"
        warnings.warn(
            f"step {index + 1}: the engine's log-probs are {gap:.3f} nats from the trainer's (step 1: {was}); "
            "weights may not be in sync, or the learning rate is too high; rollout.type=transformers tells which",
            stacklevel=2,
        )


def stop_if_lost(parts: Parts, rollouts: list[Rollout], index: int, skips: int) -> None:
    """TrainingError after several skipped steps in a row, with the last one's rollouts saved."""
    if skips < parts.checked.recipe.stop_after_skips:
        return
    path = parts.folder.path / "nonfinite.jsonl"
    if parts.run.ranks.is_main:
        write_rollouts(path, rollouts)
    parts.run.ranks.barrier()
    raise TrainingError(
        f"{skips} steps in a row were not finite or had no token to train on, the last is step {index + 1}; its "
        f"rollouts are in {path}; lower optimizer.lr, or look for broken weights, data or rollouts"
    )


def finish(parts: Parts, *, resumed_from: int) -> dict[str, Any]:
    """The model as a plain folder, the summary, the plot, the table."""
    run, folder = parts.run, parts.folder
    with run.clock("export"):
        export(parts, folder.model)
    facts = {
        "ranks": run.ranks.count,
        "zero_stage": run.trainer.zero_stage,
        "resumed_from": resumed_from,
        "prompts": len(parts.checked.prompts.prompts),
        "prompts_too_long": parts.checked.prompts.too_long,
        "prompts_duplicate": parts.checked.prompts.duplicates,
    }
    summary = summary_of(folder, run.recipe, facts, run.clock.take())
    if run.ranks.is_main:
        folder.write_summary(summary)
        write_cards(folder, summary)
        plot_run(folder, folder.metrics(), summary["scores"])
        print_summary(folder, summary)
    for tracker in run.trainer.accelerator.trackers:
        tracker.finish()
    if parts.engine is not None:
        parts.engine.close()
    distributed.leave(run.ranks, last=lambda: upload(parts))
    return summary


def upload(parts: Parts) -> None:
    """The model to the hub, where the recipe asks for it; UploadError in one line, which says how to go on."""
    if (hub := parts.run.recipe.hub) is None:
        return
    try:
        print(f"hub   {push(parts.folder.path, hub)}", flush=True)
    except HubError as error:
        raise UploadError(f"the run is whole, and `{push_command(parts.folder.path, hub)}` goes on: {error}") from error
