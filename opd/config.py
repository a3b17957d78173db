"""A recipe: everything that decides a run, as typed and validated data. Read `Recipe` first.

`opd/recipe_text.py` reads one from YAML, and says in one line what is wrong with it.
"""

from __future__ import annotations

from functools import reduce
from operator import or_
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from opd.figures import MeasuredFigures, ReportedFigures
from opd.head.settings import HeadKernels, HeadPrecision
from opd.hub import HubSettings
from opd.lora import LoraSettings
from opd.model_spec import ModelSettings, Precision
from opd.objectives import OBJECTIVES
from opd.objectives.base import ChosenObjective, RowsObjective
from opd.record import Record, Share, scheduled
from opd.rollout.settings import RolloutSettings
from opd.selection import SELECTORS
from opd.selection.rollouts import ROLLOUT_SELECTORS
from opd.teacher.settings import LocalTeacherSettings


def union_of(registry: dict[str, type[Record]]) -> Any:
    """The union of a registry's records, told apart by their `type`."""
    return Annotated[reduce(or_, registry.values()), Field(discriminator="type")]


class StudentSettings(ModelSettings):
    """The model that learns."""

    gradient_checkpointing: Literal[False, True, "offload"] = False
    """Recompute activations in the backward pass: less memory, a third more time; offload: block inputs on the host."""
    lora: LoraSettings | None = None
    """Null trains every weight."""


class PromptSettings(Record):
    """Where prompts come from: a data set on the hub, or a local JSONL or Parquet file."""

    dataset: str | None = None
    """Hub id; give this or `path`."""
    path: str | None = None
    """Local .jsonl or .parquet file; give this or `dataset`."""
    name: str | None = None
    """Configuration of the hub data set (GSM8K has `main`)."""
    split: str = "train"
    """Split of the hub data set; a local file has only `train`."""
    revision: str | None = None
    """Commit of the hub data set; pin it for results that you publish."""
    question: str = "question"
    """Column with the user's message: a string, or a list of chat messages."""
    answer: str | None = None
    """Column with the final answer; where given, every rollout is graded and the reward logged."""
    answer_after: str | None = None
    """Take the answer from what follows this marker (GSM8K: `####`)."""
    instruction: str = ""
    """Appended to every question."""
    system: str | None = None
    """System message, where the chat template knows one."""
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Passed to the chat template, e.g. {enable_thinking: false}."""
    max_tokens: PositiveInt = 2048
    """Longer prompts are dropped, and counted."""

    @model_validator(mode="after")
    def _one_source(self) -> PromptSettings:
        if (self.dataset is None) == (self.path is None):
            raise ValueError("give exactly one of 'dataset' (hub id) and 'path' (.jsonl or .parquet file)")
        fields = type(self).model_fields
        hub_only = [name for name in ("name", "split", "revision") if getattr(self, name) != fields[name].default]
        if self.path is not None and hub_only:
            raise ValueError(f"{hub_only} belong to a hub data set and have no effect on a local file; remove them")
        if self.answer_after is not None and self.answer is None:
            raise ValueError("'answer_after' has no effect without 'answer'; name the answer's column")
        return self


class Term(Record):
    """One term of the loss: which tokens, what they pay, and how much it counts."""

    select: union_of(SELECTORS) = SELECTORS["all"]()
    """The token selector."""
    objective: union_of(OBJECTIVES)
    """What a retained token pays."""
    weight: scheduled(PositiveFloat) = 1.0
    """Factor of the term, which is a mean over its own retained tokens of the whole step; or a ramp."""


class OptimizerSettings(Record):
    """AdamW and its schedule."""

    lr: PositiveFloat = 1e-6
    """Peak learning rate."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    """AdamW's averages."""
    weight_decay: NonNegativeFloat = 0.1
    """Decoupled; applied to matrices, not to norms and biases."""
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """Shape of the learning rate over `steps`."""
    warmup: NonNegativeInt = 0
    """Steps of linear warm-up."""
    min_lr_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Where cosine ends, as a share of `lr`."""
    max_grad_norm: PositiveFloat = 1.0
    """The global gradient norm is clipped to this."""

    @model_validator(mode="after")
    def _nothing_ignored(self) -> OptimizerSettings:
        if self.min_lr_share and self.schedule != "cosine":
            raise ValueError(
                f"'min_lr_share' belongs to schedule cosine and has no effect with {self.schedule!r}; remove it"
            )
        return self


class EvaluateSettings(Record):
    """Scores of teacher and student on held-out problems, on the engine that is already up."""

    task: str
    """A task of eval/tasks, e.g. gsm8k."""
    problems: PositiveInt = 200
    """The first so many problems of the task."""
    every: NonNegativeInt = 0
    """Score the student every so many steps too, and keep the best such student in `best/`; 0: start and end only."""
    samples: PositiveInt = 1
    """Answers to a problem; more than one need a temperature."""
    temperature: NonNegativeFloat = 0.0
    """0 is greedy, whatever the task's own protocol: cheap, and the same problems each time."""
    max_new_tokens: PositiveInt | None = None
    """Null takes the task's own."""
    teacher: bool = True
    """Score the teacher once."""
    fixed_text: NonNegativeInt = 64
    """So many rollouts of the *start* student on held-out problems, at temperature 1: both KLs are measured on them."""

    @model_validator(mode="after")
    def _samples_differ(self) -> EvaluateSettings:
        if self.samples > 1 and not self.temperature:
            raise ValueError(f"{self.samples} greedy answers to a problem are all the same; set temperature above 0")
        return self


class MetricSettings(Record):
    """What is measured, and where it goes."""

    full_every: PositiveInt = 10
    """Every so many steps, statistics that no selector needs are measured too (entropies, divergences, engine gap)."""
    quadrant_cuts: tuple[Share, Share] = (0.5, 0.5)
    """Where TIP's quadrants part: ĥ and δ̂ (both scaled to [0, 1] over the step) strictly above count as high."""
    rollouts: NonNegativeInt = 8
    """Rollouts a step that are stored with per-token statistics and weights."""
    trackers: list[Literal["tensorboard", "wandb", "trackio", "mlflow"]] = Field(default_factory=list)
    """Experiment trackers beside metrics.jsonl: metrics, scores, the recipe, and every `full_every` steps samples."""


class CheckpointSettings(Record):
    """What `--resume` continues from."""

    every: PositiveInt = 50
    """Steps between checkpoints."""
    keep: PositiveInt = 1
    """Newest checkpoints that stay."""


class Recipe(Record):
    """A whole recipe. Its result depends on `token_budget` and, for given rollouts, on the ranks by rounding alone."""

    name: str | None = None
    """Folder of the run below --runs; null takes the recipe's name and the time."""
    student: StudentSettings
    teacher: LocalTeacherSettings
    prompts: PromptSettings
    rollout: RolloutSettings = RolloutSettings()
    advantage: Literal["reward", "log_ratio"] | None = None
    """What tells a prompt's rollouts apart: group-normalised rewards, or group-centred means of log p_T − log p_S."""
    rollout_selection: union_of(ROLLOUT_SELECTORS) = ROLLOUT_SELECTORS["all"]()
    """Which of the step's rollouts train."""
    loss: Annotated[list[Term], Field(min_length=1)]
    """The terms; they add up."""
    loss_temperature: scheduled(PositiveFloat) = 1.0
    """Temperature of both models in objectives and statistics (not the sampler's); no T² factor. Or a ramp."""
    stop_class: bool = True
    """All tokens that end a turn, of student and teacher, count as one outcome (arXiv 2609.20511); for single turns."""
    optimizer: OptimizerSettings = OptimizerSettings()
    steps: PositiveInt = 200
    """Optimizer steps."""
    prompts_per_step: PositiveInt = 8
    """Prompts of one optimizer step, over all ranks; times `rollout.samples_per_prompt` rollouts."""
    token_budget: PositiveInt = 16384
    """Tokens of a micro-batch, prompts and padding included, of all pieces: memory, speed, at most rounding."""
    sequence_parallel_size: PositiveInt = 1
    """So many ranks share every sequence, a piece each, in student and teacher (Ulysses): memory, at most rounding."""
    tile_mib: PositiveInt | None = None
    """Working memory of the loss head in MiB: speed, at most rounding; null: 150, on CUDA 1,024."""
    head_precision: HeadPrecision = "exact"
    """exact keeps the products of a bf16 head in fp32; fast rounds each to bf16, for speed on a CPU."""
    head_kernels: HeadKernels = "auto"
    """fused compiles the head's elementwise work (seconds, once a process); plain is torch; auto fuses on CUDA."""
    precision: Precision = "bf16"
    """Of weights and arithmetic; bf16 trains with fp32 master weights."""
    seed: int = 0
    """Keys every draw of the run."""
    stop_after_skips: PositiveInt = 3
    """Skipped steps in a row (not finite on some rank, or without a token to train on) after which the run stops."""
    evaluate: EvaluateSettings | None = None
    """Null evaluates nothing."""
    metrics: MetricSettings = MetricSettings()
    checkpoints: CheckpointSettings = CheckpointSettings()
    hub: HubSettings | None = None
    """Null uploads nothing."""
    published: ReportedFigures | None = None
    """The paper's figures for this recipe, with protocol and source."""
    reproduced_elsewhere: ReportedFigures | None = None
    """Others' figures."""
    measured: MeasuredFigures | None = None
    """Ours: scores and standard errors, steps, hardware, commit, command; null until run."""

    @model_validator(mode="after")
    def _recorded_rollouts_have_no_seed(self) -> Recipe:
        if self.rollout.type == "recorded" and not self.rollout.seeded:
            raise ValueError("'rollout.seeded' has no effect on recorded rollouts; remove it")
        return self

    @model_validator(mode="after")
    def _no_engine_has_no_settings(self) -> Recipe:
        if not self.samples and (given := self.rollout.for_vllm):
            raise ValueError(
                f"'rollout.{given[0]}' has no effect: recorded rollouts without evaluate start no engine; remove it"
            )
        return self

    @model_validator(mode="after")
    def _fast_products_of_short_weights(self) -> Recipe:
        if self.head_precision == "fast" and self.precision == "fp32":
            raise ValueError("'head_precision: fast' has no effect on fp32 weights; remove it, or set precision: bf16")
        return self

    @model_validator(mode="after")
    def _budget_holds_a_rollout(self) -> Recipe:
        longest = self.prompts.max_tokens + self.rollout.max_new_tokens
        if self.token_budget < longest:
            raise ValueError(
                f"token_budget {self.token_budget} is below one rollout: prompts.max_tokens {self.prompts.max_tokens} "
                f"+ rollout.max_new_tokens {self.rollout.max_new_tokens} = {longest}; raise it to {longest} or more"
            )
        return self

    @model_validator(mode="after")
    def _name_is_a_folder(self) -> Recipe:
        if self.name is not None and (self.name in ("", ".", "..") or "/" in self.name or "\\" in self.name):
            raise ValueError(f"name {self.name!r} is not the name of a folder; give one word without slashes")
        return self

    @model_validator(mode="after")
    def _uploads_what_there_will_be(self) -> Recipe:
        part = self.hub.part if self.hub else "model"
        if part == "merged" and not (self.student.lora and self.student.lora.merge):
            raise ValueError("hub.part 'merged' needs student.lora.merge: true")
        if part == "best" and not (self.evaluate and self.evaluate.every):
            raise ValueError("hub.part 'best' needs evaluate.every")
        return self

    @model_validator(mode="after")
    def _advantage_where_it_is_read(self) -> Recipe:
        readers = [part.type for part in self.parts if "advantage" in part.needs]
        if readers and self.advantage is None:
            raise ValueError(f"{readers[0]!r} needs an advantage; set advantage: reward, or advantage: log_ratio")
        if self.advantage is not None and not readers:
            raise ValueError(f"'advantage: {self.advantage}' has no effect: nothing here reads it; remove it")
        if self.advantage == "log_ratio" and any(part.type == "task_reward" for part in self.parts):
            raise ValueError("'task_reward' needs advantage: reward, and this recipe says advantage: log_ratio")
        if self.advantage is not None and self.rollout.samples_per_prompt == 1:
            raise ValueError("an advantage compares rollouts of one prompt; raise rollout.samples_per_prompt above 1")
        rewarded = "advantage: reward" if self.advantage == "reward" else None
        rewarded = rewarded or next((repr(part.type) for part in self.parts if "reward" in part.needs), None)
        if rewarded and self.prompts.answer is None:
            raise ValueError(f"{rewarded} needs rewards; name the answers' column in prompts.answer")
        return self

    @model_validator(mode="after")
    def _sampled_tokens_at_one_temperature(self) -> Recipe:
        for term in self.loss:
            sampled = isinstance(term.objective, ChosenObjective) and term.objective.is_policy_gradient
            if sampled and self.rollout.type == "recorded" and not getattr(term.objective, "clip", None):
                raise ValueError(
                    f"objective {term.objective.type!r} follows the student's own samples, and recorded rollouts are "
                    "another policy's; take a dense objective, or one with 'clip'"
                )
            if sampled and self.loss_temperature != self.rollout.temperature:
                raise ValueError(
                    f"objective {term.objective.type!r} follows sampled tokens: loss_temperature "
                    f"{self.loss_temperature} and rollout.temperature {self.rollout.temperature} must be equal"
                )
        return self

    @model_validator(mode="after")
    def _one_middle_layer(self) -> Recipe:
        if len(self._layers) > 1:
            raise ValueError(f"terms read the middle layers {self._layers}, and a step reads one; give all the same")
        return self

    @property
    def rollouts_per_step(self) -> int:
        """Rollouts of one optimizer step, over all ranks."""
        return self.prompts_per_step * self.rollout.samples_per_prompt

    def rollouts_per_data_rank(self, ranks: int) -> int:
        """Rollouts of a step that one data rank trains on, where all are alike in length."""
        return -(-self.rollouts_per_step // (ranks // self.sequence_parallel_size))

    @property
    def samples(self) -> bool:
        """Whether the run starts an engine: for rollouts, or for held-out problems."""
        return self.rollout.type != "recorded" or self.evaluate is not None

    @property
    def layer_share(self) -> float | None:
        """Depth of the middle layer that an objective reads, or None."""
        return next(iter(self._layers), None)

    @property
    def _layers(self) -> list[float]:
        return sorted({t.objective.layer_share for t in self.loss if isinstance(t.objective, RowsObjective)} - {None})

    @property
    def parts(self) -> list[Record]:
        """Everything that chooses or pays: it has `type` and `needs`."""
        return [self.rollout_selection, *(part for term in self.loss for part in (term.select, term.objective))]

    @property
    def needs(self) -> frozenset[str]:
        """What selectors and objectives read: names of statistics, `reward`, `advantage`."""
        ratio = ("student_logprob", "teacher_logprob") if self.advantage == "log_ratio" else ()
        return frozenset([*ratio, *(name for part in self.parts for name in part.needs)])
