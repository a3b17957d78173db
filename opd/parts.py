"""The parts of a run, each built from a checked recipe: engine, teacher, student, optimizer, grader, source."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from opd.batch import Rollout
from opd.config import Recipe
from opd.distributed import Ranks
from opd.doctor import Checked, longest_held_out
from opd.errors import EngineError
from opd.grading.extract import opens_thought
from opd.lora import attach
from opd.model_spec import ModelSettings
from opd.models import DTYPES, check_one_dtype, freeze_beside, load_model, processor_files, token_count
from opd.packing import Layout
from opd.prompts import completion_text
from opd.rewards import grade
from opd.rollout.engine import RolloutEngine
from opd.rollout.settings import RolloutSettings
from opd.rollout.source import Source, live, recorded
from opd.rollout.start import start_engine
from opd.run import RunFolder
from opd.step import Grade, Run
from opd.student import Student
from opd.teacher.check import check_reading, share_checked
from opd.teacher.local import LocalTeacher
from opd.teacher.offloaded import OffloadedTeacher
from opd.teacher.sharded import ShardedTeacher, load_sharded, whole_head
from opd.vocab_ranks import RankShard


@dataclass
class Parts:
    """What the loop runs on."""

    checked: Checked
    folder: RunFolder
    run: Run
    engine: RolloutEngine | None
    source: Source


@dataclass(frozen=True)
class Models:
    """What a recipe names, loaded: the engine that samples (None where nothing does), the teacher, the student."""

    engine: RolloutEngine | None
    teacher: LocalTeacher
    student: Student


def layout_of(recipe: Recipe) -> Layout:
    """How rollouts lie in a micro-batch, for student and teacher alike."""
    return "packed" if recipe.student.attention == "flash_attention_2" else "rows"


def load_models(checked: Checked, ranks: Ranks, *, samples: bool) -> Models:
    """Engine (where something is sampled), teacher and student, each read as its own forward says."""
    recipe = checked.recipe
    engine = engine_for(checked, ranks, recipe.student, checked.stop.ends_rollouts, recipe.rollout) if samples else None
    return Models(engine, load_teacher(checked, ranks), load_student(checked, ranks))


def engine_for(
    checked: Checked, ranks: Ranks, spec: ModelSettings, stop: list[int], settings: RolloutSettings
) -> RolloutEngine:
    """A rollout engine that holds the student or the teacher, and has room for prompts, rollouts and evaluations."""
    recipe = checked.recipe
    evaluations = filter(None, (checked.evaluation, checked.teacher_evaluation))
    held_out = [longest_held_out(recipe, evaluation) for evaluation in evaluations]
    longest = max([recipe.prompts.max_tokens + recipe.rollout.max_new_tokens, *held_out])
    engine = start_engine(
        spec.model,
        settings,
        ranks,
        dtype=DTYPES[recipe.precision],
        max_tokens=longest,
        stop=stop,
        seed=recipe.seed,
        revision=spec.revision,
    )
    if engine.alters_transformers:
        raise EngineError(
            f"vLLM has no model of its own for {spec.model!r} and alters transformers' for all of this process; "
            "take rollout.type=transformers"
        )
    return engine


def load_teacher(checked: Checked, ranks: Ranks) -> LocalTeacher:
    """The teacher with its weights where the recipe says: all on this rank or in parts over all, here or in waiting."""
    spec, dtype = checked.recipe.teacher, DTYPES[checked.recipe.precision]
    is_cut = checked.teacher_head.ranks > 1 and ranks.count > 1
    shard = RankShard.of_rank(checked.teacher_head.vocabulary) if is_cut else None
    if spec.shard == "zero3" and ranks.count > 1:
        model, engine = load_sharded(spec, dtype, offload=spec.offload)
        with whole_head(model):
            check_reading(model, checked.probes, layout_of(checked.recipe), spec.model)
        return ShardedTeacher(model, engine, shard, offload=spec.offload)
    model = load_frozen(checked, ranks, spec)
    return OffloadedTeacher(model, ranks.device, shard) if spec.offload else LocalTeacher(model, shard)


def load_frozen(checked: Checked, ranks: Ranks, spec: ModelSettings) -> PreTrainedModel:
    """A model that only scores: the teacher, or the student at start."""
    return load_read(checked, ranks, spec).eval().requires_grad_(False)


def shared_rows(models: Models) -> int:
    """Tokens that both heads know."""
    return min(models.student.head.weight_rows, models.teacher.vocabulary)


def load_student(checked: Checked, ranks: Ranks) -> Student:
    """The student's module, whole, on this rank's device."""
    recipe = checked.recipe
    model = load_read(checked, ranks, recipe.student)
    processor_files(model, recipe.student.model, recipe.student.revision)  # into the hub's cache, for the export
    if recipe.student.lora is not None:
        attach(model, recipe.student.lora, recipe.student, seed=recipe.seed)
    else:
        freeze_beside(model)
    check_one_dtype(model, DTYPES[recipe.precision], recipe.student.model)
    if kind := recipe.student.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False}, offload=kind == "offload")
    tokens = token_count(checked.tokenizer, checked.teacher_head.vocabulary)
    student = Student(model, tokens=tokens, layer_share=recipe.layer_share)
    return student.to(ranks.device)


def load_read(checked: Checked, ranks: Ranks, spec: ModelSettings) -> PreTrainedModel:
    """A model on this rank's device; ModelError where our reading of it differs from its own forward."""
    recipe = checked.recipe
    model = load_model(spec.model, dtype=DTYPES[recipe.precision], attention=spec.attention, revision=spec.revision)
    model = model.to(ranks.device)
    check_reading(model, checked.probes, layout_of(recipe), spec.model)
    return model


def share_sequences(checked: Checked, models: Models, reference: LocalTeacher | None, ranks: Ranks) -> None:
    """From here on ranks that share sequences read them so; ModelError where a model then reads something else."""
    if ranks.pieces == 1:
        return
    recipe = checked.recipe
    shared = [(recipe.student, models.student.model), (recipe.teacher, models.teacher.model)]
    if reference is not None:
        shared.append((recipe.student, reference.model))
    for spec, model in shared:
        share_checked(model, checked.probes, layout_of(recipe), ranks, spec.model)


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
        said = completion_text(checked.tokenizer, rollout.completion)
        return grade(said, rollout.extra["answer"], thinking=opens_thought(checked.tokenizer.decode(rollout.prompt)))

    return graded


def source_for(checked: Checked, engine: RolloutEngine | None) -> Source:
    """Where each step's rollouts come from."""
    recipe = checked.recipe
    if recipe.rollout.path is not None:
        return recorded(recipe.rollout.path)
    prompts, count = checked.prompts, recipe.prompts_per_step
    return live(engine, lambda step: prompts.of_step(step, count, seed=recipe.seed), seed=recipe.seed)
