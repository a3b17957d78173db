"""The main job, read this first: build the parts, run the loop, evaluate, save.

`train` is the whole story; each of its lines calls a part that is named like its file.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from opd import checkpoint, distributed, schedules
from opd.batch import Rollout
from opd.config import Recipe, StudentSettings
from opd.doctor import Checked, longest_held_out
from opd.errors import TrainingError
from opd.metrics import Clock, repetitive
from opd.models import DTYPES, load_model, token_count
from opd.packing import Layout
from opd.report.card import write_card
from opd.report.plot import plot_run
from opd.report.progress import Progress
from opd.report.rollouts import record_rollouts
from opd.report.table import print_summary
from opd.rewards import grade
from opd.rollout.engine import RolloutEngine, Sampling
from opd.rollout.files import read_rollouts, write_rollouts
from opd.rollout.source import Source, live, recorded
from opd.rollout.start import engine_type, start_engine
from opd.run import RunFolder, environment, summary_of
from opd.step import REFERENCE, Grade, Outcome, Run, divergences, step
from opd.student import Student
from opd.teacher.check import check_reading, check_self_distillation, stop_report
from opd.teacher.local import LocalTeacher
from opd.teacher.settings import LocalTeacherSettings

STOP_ROLLOUTS = 32
"""Rollouts on which stopping is measured before step 1."""


@dataclass
class Parts:
    """What the loop runs on."""

    checked: Checked
    folder: RunFolder
    run: Run
    engine: RolloutEngine | None
    source: Source
    environment: dict[str, Any]


def train(checked: Checked, folder: RunFolder, *, resume: bool) -> dict[str, Any]:
    """Run the checked recipe in its folder; returns the summary that it also writes there."""
    recipe = checked.recipe
    parts = build(checked, folder, resume=resume)
    with parts.run.clock("start"):
        first = restore(parts) if resume else 0
    evaluate_student(parts, "student_start", steps=first)
    if first == 0:
        with parts.run.clock("start"):
            say_stops(parts)
    skips = parts.folder.skips()
    with Progress(recipe.steps, done=first, shown=parts.run.ranks.is_main) as progress:
        for index in range(first, recipe.steps):
            outcome = one_step(parts, index)
            progress.show(index + 1, outcome.metrics)
            skips = skips + 1 if outcome.skipped else 0
            stop_if_lost(parts, outcome.rollouts, index, skips)
            if recipe.evaluate and recipe.evaluate.every and (index + 1) % recipe.evaluate.every == 0:
                evaluate_student(parts, f"step_{index + 1}", steps=index + 1)
            if (index + 1) % recipe.checkpoints.every == 0 or index + 1 == recipe.steps:
                keep = recipe.checkpoints.keep
                with parts.run.clock("checkpoint"):
                    checkpoint.save(parts.folder.checkpoints, parts.run.trainer, steps=index + 1, keep=keep)
    evaluate_student(parts, "student_end", steps=recipe.steps)
    return finish(parts, resumed_from=first)


def build(checked: Checked, folder: RunFolder, *, resume: bool) -> Parts:
    """Processes, folder, engine, teacher, student: everything that a step works with."""
    recipe = checked.recipe
    accelerator = distributed.start(
        recipe.precision,
        max_grad_norm=recipe.optimizer.max_grad_norm,
        trackers=list(recipe.metrics.trackers),
        folder=folder.path,
    )
    ranks = distributed.Ranks(accelerator.device)
    folder = RunFolder(ranks.from_main(folder.path))
    if ranks.is_main and not resume:
        folder.create(recipe)
    if recipe.metrics.trackers:
        accelerator.init_trackers("opd", config={"recipe": recipe.model_dump_json()})
    started_with = environment()
    if ranks.is_main and recipe.rollout.type == "auto":
        print(f"rollouts by {engine_type(recipe.rollout)}", flush=True)
    clock = Clock()
    evaluate_teacher(checked, folder, ranks, clock)
    with clock("start"):
        engine = None
        if recipe.rollout.type != "recorded" or recipe.evaluate:
            stop = checked.stop.ends_rollouts
            engine = engine_for(checked, ranks, recipe.student, stop)
        layout: Layout = "packed" if recipe.student.attention == "flash_attention_2" else "rows"
        teacher = LocalTeacher(load_frozen(checked, ranks, recipe.teacher, layout))
        reference = None
        if REFERENCE in recipe.needs:
            reference = LocalTeacher(load_frozen(checked, ranks, recipe.student, layout))
        student = load_student(checked, ranks, layout)
        check_self_distillation(student, checked.prompts.prompts[:4], layout)
        trainer = distributed.Trainer(accelerator, student, optimizer_for(student, recipe))
    rows = min(student.head.weight_rows, teacher.head.vocabulary)
    grade_ = grader(checked)
    run = Run(recipe, trainer, teacher, ranks, layout, grade_, clock, checked.stop.every, rows, reference)
    return Parts(checked, folder, run, engine, source_for(checked, engine), started_with)


def measure_stops(checked: Checked) -> list[str]:
    """Load both models, sample, and say how student and teacher end a turn; trains nothing and writes nothing."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    ranks, recipe = distributed.Ranks(device), checked.recipe
    layout: Layout = "packed" if recipe.student.attention == "flash_attention_2" else "rows"
    engine = None
    if recipe.rollout.type != "recorded":
        engine = engine_for(checked, ranks, recipe.student, checked.stop.ends_rollouts)
    teacher = LocalTeacher(load_frozen(checked, ranks, recipe.teacher, layout))
    student = load_student(checked, ranks, layout)
    run = Run(recipe, student, teacher, ranks, layout, None, Clock(), checked.stop.every)
    rollouts = source_for(checked, engine)(schedules.at(recipe, 0).rollout, 0)[:STOP_ROLLOUTS]
    lines, _ = stop_report(run, checked.stop, rollouts, checked.tokenizer)
    if engine is not None:
        engine.close()
    return lines


def engine_for(
    checked: Checked, ranks: distributed.Ranks, spec: StudentSettings | LocalTeacherSettings, stop: list[int]
) -> RolloutEngine:
    """A rollout engine that holds the student or the teacher, and has room for prompts, rollouts and evaluations."""
    recipe = checked.recipe
    evaluations = filter(None, (checked.evaluation, checked.teacher_evaluation))
    held_out = [longest_held_out(recipe, evaluation) for evaluation in evaluations]
    longest = max([recipe.prompts.max_tokens + recipe.rollout.max_new_tokens, *held_out])
    return start_engine(
        spec.model,
        recipe.rollout,
        ranks,
        dtype=DTYPES[recipe.precision],
        max_tokens=longest,
        stop=stop,
        seed=recipe.seed,
        revision=spec.revision,
    )


def load_frozen(
    checked: Checked, ranks: distributed.Ranks, spec: StudentSettings | LocalTeacherSettings, layout: Layout
) -> PreTrainedModel:
    """A model that only scores: the teacher, or the student at start."""
    loading = {"dtype": DTYPES[checked.recipe.precision], "attention": spec.attention, "revision": spec.revision}
    model = load_model(spec.model, **loading).to(ranks.device).eval().requires_grad_(False)
    check_reading(model, checked.prompts.prompts[:4], layout, spec.model)
    return model


def load_student(checked: Checked, ranks: distributed.Ranks, layout: Layout) -> Student:
    """The student's module, whole, on this rank's device."""
    recipe = checked.recipe
    spec = recipe.student
    model = load_model(spec.model, dtype=DTYPES[recipe.precision], attention=spec.attention, revision=spec.revision)
    model = model.to(ranks.device)
    check_reading(model, checked.prompts.prompts[:4], layout, spec.model)
    if spec.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    student = Student(model, tokens=token_count(checked.tokenizer), layer_share=recipe.layer_share)
    return student.to(ranks.device)


def optimizer_for(student: Student, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW; matrices decay, norms and biases do not."""
    settings = recipe.optimizer
    parameters = [p for p in student.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    # Rate 0 until a step sets its own: at ZeRO-0 in bf16 DeepSpeed's start-up steps once, and would decay the weights.
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=0.0, betas=settings.betas, fused=True)


def grader(checked: Checked) -> Grade | None:
    """Rollout → reward by the one grader, where the recipe names the answers' column."""
    if checked.recipe.prompts.answer is None:
        return None

    def graded(rollout: Rollout) -> float:
        text = checked.tokenizer.decode(rollout.completion, skip_special_tokens=True)
        return grade(text, rollout.extra["answer"])

    return graded


def source_for(checked: Checked, engine: RolloutEngine | None) -> Source:
    """Where each step's rollouts come from."""
    recipe = checked.recipe
    if recipe.rollout.path is not None:
        return recorded(recipe.rollout.path)
    prompts, count = checked.prompts, recipe.prompts_per_step
    return live(engine, lambda step: prompts.of_step(step, count, seed=recipe.seed), seed=recipe.seed)


def restore(parts: Parts) -> int:
    """Continue from the newest checkpoint: weights, optimizer, metrics; returns its steps."""
    steps = checkpoint.load(parts.folder.checkpoints, parts.run.trainer)
    if parts.run.ranks.is_main:
        parts.folder.cut_to(steps)
    parts.run.ranks.barrier()
    sync(parts, steps)
    return steps


def one_step(parts: Parts, index: int) -> Outcome:
    """Rollouts, an optimizer step, and the new weights back to the engine; logged."""
    run, recipe = parts.run, schedules.at(parts.run.recipe, index)
    with run.clock("step"):
        with run.clock("generate"):
            rollouts = parts.source(recipe.rollout, index)
        outcome = step(run, recipe, rollouts, index)
        with run.clock("sync"):
            sync(parts, index + 1)
    outcome.metrics.update({f"schedule/{key}": value for key, value in schedules.moving(run.recipe, recipe).items()})
    log_step(parts, outcome, index)
    return outcome


def sync(parts: Parts, version: int) -> None:
    """Stream the student's weights to the engine, which then samples from version `version`."""
    if parts.engine is not None:
        parts.engine.load(parts.run.trainer.student.weights(), version)


def log_step(parts: Parts, outcome: Outcome, index: int) -> None:
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
    gap, first = outcome.metrics.get("gap"), parts.folder.first_metrics().get("gap")
    sampled_now = parts.checked.recipe.rollout.type != "recorded"
    if sampled_now and gap is not None and first is not None and gap > max(3 * first, 0.1):
        warnings.warn(
            f"step {index + 1}: the engine's log-probs are {gap:.3f} nats from the trainer's (step 1: {first:.3f}); "
            "weights may not be in sync, or the learning rate is too high",
            stacklevel=2,
        )


def stop_if_lost(parts: Parts, rollouts: list[Rollout], index: int, skips: int) -> None:
    """TrainingError after several non-finite steps in a row, with the last one's rollouts saved."""
    if skips < parts.checked.recipe.stop_after_skips:
        return
    path = parts.folder.path / "nonfinite.jsonl"
    if parts.run.ranks.is_main:
        write_rollouts(path, rollouts)
    parts.run.ranks.barrier()
    raise TrainingError(
        f"{skips} steps in a row were not finite, the last is step {index + 1}; its rollouts are in {path}; "
        "lower optimizer.lr, or look for broken weights or data"
    )


def evaluate_teacher(checked: Checked, folder: RunFolder, ranks: distributed.Ranks, clock: Clock) -> None:
    """The teacher's score, once a run, by an engine of its own that is closed again."""
    settings, teacher = checked.recipe.evaluate, checked.recipe.teacher
    if not settings or not settings.teacher or ranks.from_main("teacher" in folder.scores().get(settings.task, {})):
        return
    with clock("evaluate"):
        engine = engine_for(checked, ranks, teacher, checked.stop.teacher)
        score = checked.teacher_evaluation(engine)
        engine.close()
    if ranks.is_main:
        folder.add_score(settings.task, "teacher", score)
    ranks.barrier()


def evaluate_student(parts: Parts, who: str, *, steps: int) -> None:
    """The student's score on the engine that is up, and both KLs on the start student's text; once each a run."""
    settings, folder, run = parts.checked.recipe.evaluate, parts.folder, parts.run
    if not settings or run.ranks.from_main(who in folder.scores().get(settings.task, {})):
        return
    with run.clock("evaluate"):
        score = parts.checked.evaluation(parts.engine) | {"steps": steps}
        if settings.fixed_text:
            score["fixed_text"] = divergences(run, fixed_text(parts))
    if run.ranks.is_main:
        folder.add_score(settings.task, who, score)
    run.ranks.barrier()


def say_stops(parts: Parts) -> None:
    """What student and teacher declare and do where rollouts end, measured before step 1; warns where they differ."""
    run, stop = parts.run, parts.checked.stop
    now = schedules.at(run.recipe, 0)
    few = now.rollout.model_copy(update={"samples_per_prompt": 1})
    lines, differs = stop_report(run, stop, parts.source(few, 0)[:STOP_ROLLOUTS], parts.checked.tokenizer)
    if run.ranks.is_main:
        print("\n".join(lines), flush=True)
        if differs:
            warnings.warn(lines[-1], stacklevel=2)


def fixed_text(parts: Parts) -> list[Rollout]:
    """Rollouts of the start student on held-out problems, sampled once a run and kept."""
    recipe, path, ranks = parts.checked.recipe, parts.folder.fixed_text, parts.run.ranks
    if not ranks.from_main(path.exists()):
        prompts = parts.checked.evaluation.prompts[: recipe.evaluate.fixed_text]
        key = ("fixed_text", recipe.seed)
        rollout = schedules.at(recipe, 0).rollout
        sampling = Sampling(1, rollout.max_new_tokens, rollout.temperature, key)
        rollouts = parts.engine.generate(prompts, sampling)
        if ranks.is_main:
            write_rollouts(path, rollouts)
    return ranks.from_main(read_rollouts(path) if ranks.is_main else None)


def finish(parts: Parts, *, resumed_from: int) -> dict[str, Any]:
    """The model as a plain folder, the summary, the plot, the table."""
    run, folder = parts.run, parts.folder
    with run.clock("export"):
        ends = parts.checked.stop.ends_rollouts
        run.trainer.student.export(folder.model, parts.checked.tokenizer, ends=ends, writes=run.ranks.is_main)
    facts = {
        "ranks": run.ranks.count,
        "zero_stage": run.trainer.zero_stage,
        "resumed_from": resumed_from,
        "prompts": len(parts.checked.prompts.prompts),
        "prompts_too_long": parts.checked.prompts.too_long,
        "prompts_duplicate": parts.checked.prompts.duplicates,
    }
    summary = summary_of(folder, run.recipe, parts.environment | facts, run.clock.take())
    if run.ranks.is_main:
        folder.write_summary(summary)
        write_card(folder.model, summary)
        plot_run(folder, folder.metrics(), summary["scores"])
        print_summary(folder, summary)
    for tracker in run.trainer.accelerator.trackers:
        tracker.finish()
    if parts.engine is not None:
        parts.engine.close()
    distributed.leave(run.ranks)
    return summary
