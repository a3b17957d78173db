"""Everything that can be found wrong before a model loads: recipe, data, tokenizers, vocabularies, ranks, machine."""

from __future__ import annotations

import importlib
import importlib.util
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from netrc import NetrcParseError, netrc
from pathlib import Path
from reprlib import repr as short
from typing import Any, Protocol, runtime_checkable

import torch
from transformers import PreTrainedTokenizerBase

from opd import schedules
from opd.arithmetic import precision_warning
from opd.attention import check_attention, check_packing, settle_attention
from opd.batch import Prompt, Rollout
from opd.config import EvaluateSettings, PromptSettings, Recipe, StudentSettings
from opd.distributed import elsewhere, is_main_process, local_world_size, world_size
from opd.errors import DataError, EngineError, ModelError, RecipeError
from opd.head.statistics import STATISTICS
from opd.hub import check_access, check_base
from opd.lora import check_adapters, rate_warning, serving_warning
from opd.models import (
    DTYPES,
    architecture,
    dropout_rates,
    empty_model,
    load_config,
    load_tokenizer,
    text_config,
    token_count,
    training_context,
)
from opd.prompts import PromptSet, load_prompts, other_template_warning, template_warning
from opd.rollout.check import check_engine, check_experts, check_room, check_sleep, check_tensor_parallel
from opd.rollout.engine import RolloutEngine
from opd.rollout.files import read_rollouts, recorded_temperature, step_file
from opd.schedules import warmup_warning
from opd.stop import StopTokens, stops_of
from opd.teacher.check import check_tokenizers, check_vocabularies
from opd.teacher.placement import Placement, check_rounding, check_weights, place_head
from opd.ulysses import check_shared_sequences


@runtime_checkable
class Evaluation(Protocol):
    """Held-out problems as prompts, and the score of an engine on them; eval/ makes it, cli.py hands it in."""

    prompts: list[Prompt]
    max_new_tokens: int

    def __call__(self, engine: RolloutEngine, *, who: str, to: Path | None) -> dict[str, Any]:
        """{score, stderr, n, …} of the weights that the engine holds; every graded answer is written into `to`."""


PROBE_TOKENS = 256
"""A prompt of the checks before step 1 is cut off here."""
MakeEvaluation = Callable[[EvaluateSettings, PreTrainedTokenizerBase, PromptSettings | None], Evaluation]
"""settings, the model's tokenizer, and the recipe's prompts, whose system message and template settings it shares."""


@dataclass(frozen=True)
class Checked:
    """A recipe that passed every check, with what the checks had to load anyway."""

    recipe: Recipe
    """With a kernel in place of each `attention: auto`."""
    tokenizer: PreTrainedTokenizerBase
    prompts: PromptSet
    stop: StopTokens
    evaluation: Evaluation | None
    teacher_evaluation: Evaluation | None
    teacher_head: Placement
    warnings: tuple[str, ...] = ()

    @property
    def probes(self) -> list[Prompt]:
        """Beginnings of a few prompts, on which it is checked before step 1 that models are read as they are.

        Their whole logits are made.
        """
        return [replace(prompt, token_ids=prompt.token_ids[:PROBE_TOKENS]) for prompt in self.prompts.prompts[:4]]


def check(recipe: Recipe, make_evaluation: MakeEvaluation) -> Checked:
    """Every check that needs no model; raises an OpdError in one line at the first that fails."""
    check_machine(recipe)
    check_needs(recipe)
    check_ranks(recipe)
    check_weights(recipe.teacher, world_size())
    tokenizers = tokenizer, teacher_tokenizer = [
        load_tokenizer(spec.model, spec.revision) for spec in (recipe.student, recipe.teacher)
    ]
    check_tokenizers(tokenizer, teacher_tokenizer)
    configs = [load_config(spec.model, spec.revision) for spec in (recipe.student, recipe.teacher)]
    sizes = [text_config(config).vocab_size for config in configs]
    check_vocabularies(token_count(tokenizer, min(sizes)), student=sizes[0], teacher=sizes[1])
    recipe = settle_attention(recipe, *configs)
    teacher_head = place_head(recipe, *configs, world_size())
    check_models(recipe, configs)
    prompts = load_prompts(recipe.prompts, tokenizer)
    check_recorded(recipe, prompts, min(sizes))
    check_enough(recipe, prompts)
    evaluations = evaluations_of(recipe, tokenizers, configs, make_evaluation)
    if recipe.hub is not None and is_main_process():
        check_base(recipe.hub, recipe.student.model, adapted=recipe.student.lora is not None)
        check_access(recipe.hub)
    width, adapted = text_config(configs[0]).hidden_size, recipe.student.lora is not None
    warned = (
        rate_warning(recipe.optimizer.lr, width, adapted=adapted),
        warmup_warning(recipe),
        serving_warning(configs[0], adapted=adapted),
        precision_warning(recipe.precision),
        template_warning(recipe.prompts, tokenizer),
        other_template_warning(recipe.prompts, *tokenizers),
        login_warning(recipe.metrics.trackers),
    )
    return Checked(
        recipe,
        tokenizer,
        prompts,
        stop=stops_of(recipe, tokenizer, teacher_tokenizer),
        evaluation=evaluations[0],
        teacher_evaluation=evaluations[1],
        teacher_head=teacher_head,
        warnings=tuple(filter(None, warned)),
    )


def check_models(recipe: Recipe, configs: list[Any]) -> None:
    """RecipeError, ModelError or EngineError for what the student's and the teacher's architectures can't do."""
    student = recipe.student
    check_rounding(recipe, configs[1])
    check_quantization(configs[0], student.model)
    check_dropout(configs[0], student.model)
    check_checkpointing(student, configs[0])
    if recipe.samples:
        check_experts(recipe.rollout, configs[0], student.model)
        check_sleep(recipe.rollout, configs[0], student.model)
    if student.lora is not None:
        check_adapters(empty_model(configs[0]), student.lora, student)
    in_engine = [student, *([recipe.teacher] if recipe.evaluate is not None and recipe.evaluate.teacher else [])]
    for config, spec in zip(configs, (student, recipe.teacher), strict=True):
        check_attention(spec, config)
        check_packing(recipe, spec, config)
        if spec in in_engine:
            check_tensor_parallel(recipe.rollout, config, spec.model)
        check_shared_sequences(recipe, spec, config)
        check_context(recipe, config, spec.model)
    if recipe.evaluate is not None and recipe.evaluate.teacher:
        check_room(recipe.rollout, configs[1], recipe.teacher.model, DTYPES[recipe.precision])


def check_enough(recipe: Recipe, prompts: PromptSet) -> None:
    """DataError if there are fewer prompts than a step samples."""
    if recipe.rollout.path is None and recipe.prompts_per_step > len(prompts.prompts):
        raise DataError(
            f"prompts_per_step {recipe.prompts_per_step} is more than the {len(prompts.prompts)} prompts there are; "
            "lower it, or give more data"
        )


def evaluations_of(
    recipe: Recipe, tokenizers: list[PreTrainedTokenizerBase], configs: list[Any], make_evaluation: MakeEvaluation
) -> list[Evaluation | None]:
    """Held-out problems as the student and the teacher read them, where they are asked for, and checked."""
    settings, found = recipe.evaluate, []
    wanted = settings is not None, settings is not None and settings.teacher
    for spec, tokenizer, config, asked in zip(
        (recipe.student, recipe.teacher), tokenizers, configs, wanted, strict=True
    ):
        found.append(make_evaluation(settings, tokenizer, recipe.prompts) if asked else None)
        check_evaluation(recipe, found[-1], config, spec.model)
    check_fixed_text(recipe, found[0])
    return found


def check_needs(recipe: Recipe) -> None:
    """RecipeError if a selector or an objective needs what this kind of teacher can't give."""
    for i, term in enumerate(recipe.loss):
        whole = {"distributions"} if term.objective.reads_teacher else set()
        for kind, part, needs in (("selector", term.select, set()), ("objective", term.objective, whole)):
            read = {name for name in part.needs if name in STATISTICS and STATISTICS[name].needs_teacher}
            if missing := sorted((read | needs) - recipe.teacher.gives):
                raise RecipeError(
                    f"loss.{i}: {kind} {part.type!r} needs {', '.join(missing)}, and a teacher of type "
                    f"{recipe.teacher.type!r} can't give that; choose another {kind}, or a teacher that can"
                )


def check_recorded(recipe: Recipe, prompts: PromptSet, vocabulary: int) -> None:
    """DataError if recorded rollouts are missing, broken, too few, or of another temperature or other answers."""
    if recipe.rollout.path is None:
        return
    known = {tuple(prompt.token_ids): prompt.extra.get("answer") for prompt in prompts.prompts}
    for step in range(recipe.steps):
        path = step_file(recipe.rollout.path, step)
        try:
            rollouts, temperature = read_rollouts(path), recorded_temperature(path)
        except (ValueError, TypeError) as error:
            raise DataError(f"{path} does not hold rollouts ({error}); record them again") from None
        _check_recorded_step(schedules.at(recipe, step), path, rollouts, vocabulary)
        _check_recorded_temperature(schedules.at(recipe, step), path, temperature)
        if recipe.prompts.answer is not None:
            _check_recorded_answers(path, rollouts, known)


def _check_recorded_step(recipe: Recipe, path: Path, rollouts: list[Rollout], vocabulary: int) -> None:
    if len(rollouts) != (per_step := recipe.rollouts_per_step):
        raise DataError(
            f"{path} holds {len(rollouts)} rollouts, and a step wants prompts_per_step {recipe.prompts_per_step} × "
            f"rollout.samples_per_prompt {recipe.rollout.samples_per_prompt} = {per_step}; record with "
            f"metrics.rollouts={per_step}, or ask for fewer"
        )
    longest, largest = max(len(r.token_ids) for r in rollouts), max(max(r.token_ids) for r in rollouts)
    if longest > recipe.token_budget:
        raise DataError(f"{path}: a rollout of {longest} tokens passes token_budget {recipe.token_budget}; raise it")
    if largest >= vocabulary:
        raise DataError(f"{path}: token id {largest} is beyond the models' {vocabulary}; record with this student")


def _check_recorded_answers(path: Path, rollouts: list[Rollout], known: dict[tuple[int, ...], str | None]) -> None:
    for rollout in rollouts:
        answer = rollout.extra.get("answer")
        if answer is None or answer != known.get(tuple(rollout.prompt), answer):
            raise DataError(
                f"{path} holds a rollout whose known answer is {short(answer)}, which is not this recipe's "
                "prompts.answer of that prompt; record with the same prompts, or leave prompts.answer out"
            )


def _check_recorded_temperature(recipe: Recipe, path: Path, temperature: float | None) -> None:
    """A file without one is from before it was stored, or not of our making: it is taken at its word."""
    asked = recipe.rollout.temperature
    if temperature is not None and not math.isclose(temperature, asked):
        raise DataError(
            f"{path} was sampled at temperature {temperature}, and rollout.temperature here is {asked}; "
            f"set rollout.temperature={temperature}, or record again"
        )


def check_context(recipe: Recipe, config: Any, model: str) -> None:
    """RecipeError if prompt and rollout together may be longer than the model's positions."""
    longest = recipe.prompts.max_tokens + recipe.rollout.max_new_tokens
    context, bound = training_context(config)
    if context and longest > context:
        raise RecipeError(
            f"{model!r} reads {context} tokens {bound}, and prompts.max_tokens {recipe.prompts.max_tokens} "
            f"+ rollout.max_new_tokens {recipe.rollout.max_new_tokens} = {longest}; lower one of them"
        )


def longest_held_out(recipe: Recipe, evaluation: Evaluation) -> int:
    """Tokens of the longest held-out problem with its answer, or with its rollout where fixed text is made of it."""
    longest = max(len(prompt.token_ids) for prompt in evaluation.prompts)
    return max(longest + evaluation.max_new_tokens, longest_fixed_text(recipe, evaluation))


def longest_fixed_text(recipe: Recipe, evaluation: Evaluation) -> int:
    """Tokens of the longest problem that fixed text is made of, with its rollout; 0 where none is."""
    asked = evaluation.prompts[: recipe.evaluate.fixed_text]
    return max((len(prompt.token_ids) + recipe.rollout.max_new_tokens for prompt in asked), default=0)


def check_evaluation(recipe: Recipe, evaluation: Evaluation | None, config: Any, model: str) -> None:
    """RecipeError if a held-out problem and its answer would not fit the model."""
    if evaluation is None:
        return
    longest = longest_held_out(recipe, evaluation)
    context, bound = training_context(config)
    if context and longest > context:
        raise RecipeError(
            f"{model!r} reads {context} tokens {bound}, and evaluate's longest problem and answer take {longest}; "
            "lower evaluate.max_new_tokens or rollout.max_new_tokens"
        )


def check_fixed_text(recipe: Recipe, evaluation: Evaluation | None) -> None:
    """RecipeError if a rollout on a held-out problem would not fit a micro-batch."""
    if evaluation and (rollout := longest_fixed_text(recipe, evaluation)) > recipe.token_budget:
        raise RecipeError(
            f"token_budget {recipe.token_budget} is below a rollout on evaluate's problems ({rollout} tokens); "
            f"raise it to {rollout} or more, or set evaluate.fixed_text=0"
        )


def check_ranks(recipe: Recipe) -> None:
    """RecipeError if ranks can't share sequences as asked, or some data rank would have no rollout."""
    ranks, pieces = world_size(), recipe.sequence_parallel_size
    if ranks % pieces:
        raise RecipeError(
            f"sequence_parallel_size {pieces} does not divide the number of processes, {ranks}; launch a multiple of "
            f"it (accelerate launch --num_processes {pieces}), or set sequence_parallel_size to a divisor"
        )
    if ranks // pieces > (rollouts := recipe.rollouts_per_step):
        raise RecipeError(
            f"{ranks // pieces} data ranks share the {rollouts} rollouts of a step (prompts_per_step × "
            "rollout.samples_per_prompt): a rank would be idle; raise one of these, or launch fewer processes"
        )
    here, gpus = local_world_size(), torch.cuda.device_count()
    if torch.cuda.is_available() and 0 < gpus < here:
        raise RecipeError(
            f"{here} processes were launched on a machine with {gpus} GPU{'s' * (gpus > 1)}; add --num_processes "
            f"{gpus * (ranks // here)} to accelerate launch, the number on all machines together"
        )


def check_quantization(config: Any, model: str) -> None:
    """ModelError if the student's weights are quantized: trainer and engine would hold two models."""
    if getattr(config, "quantization_config", None):
        raise ModelError(f"{model!r} is quantized, and a student's weights train; take its bf16 or fp32 original")


def check_dropout(config: Any, model: str) -> None:
    """ModelError if the student drops out: scoring and training would see two models."""
    if rates := dropout_rates(config):
        raise ModelError(
            f"{model!r} has dropout {rates}: scores and gradients would differ; set it to 0 in the model's config.json"
        )


def check_checkpointing(student: StudentSettings, config: Any) -> None:
    """ModelError if activations are to be made anew, and transformers' class of the student can't."""
    if student.gradient_checkpointing and not architecture(config).supports_gradient_checkpointing:
        raise ModelError(
            f"transformers has no gradient checkpointing for {student.model!r}; remove student.gradient_checkpointing"
        )


def wanted_packages(recipe: Recipe) -> dict[str, str]:
    """Optional packages that the recipe asks for, with the setting that does."""
    wanted = {tracker: f"metrics.trackers names {tracker}" for tracker in recipe.metrics.trackers}
    if "flash_attention_2" in (recipe.student.attention, recipe.teacher.attention):
        wanted["flash_attn"] = "attention is flash_attention_2"
    return wanted


def login_warning(trackers: list[str]) -> str | None:
    """A line where W&B will ask who one is: it waits at a terminal, and a batch job stops when its run has a folder."""
    if "wandb" not in trackers or any(os.environ.get(name) for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")):
        return None
    folder = Path(os.environ.get("WANDB_CONFIG_DIR", "~/.config/wandb")).expanduser()
    if os.environ.get("WANDB_MODE") in ("offline", "disabled", "dryrun") or (folder / "settings").exists():
        return None  # the file may name a server, a mode or a key
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").removeprefix("https://").removeprefix("http://")
    try:
        known = netrc(os.environ.get("NETRC")).hosts
    except (OSError, NetrcParseError):
        known = {}
    if host.strip("/") in known:
        return None
    return (
        "warning: metrics.trackers names wandb, and nobody is logged in here (no WANDB_API_KEY, nothing in ~/.netrc); "
        "run `wandb login`, or set WANDB_MODE=offline"
    )


def check_gpu() -> None:
    """EngineError if this machine has a GPU that torch can't use: what would run on the CPU was not meant to."""
    is_hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    if is_hidden or torch.cuda.is_available() or not shutil.which("nvidia-smi"):
        return
    found = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True)
    if found.returncode == 0 and found.stdout.startswith("GPU "):
        cuda = torch.version.cuda
        way = (
            f"its CUDA {cuda} wants a newer driver" if cuda else "it is a build for CPUs: rm -r .venv, and set up anew"
        )
        raise EngineError(
            f"this machine has a GPU that torch {torch.__version__} can't use ({way}); CUDA_VISIBLE_DEVICES= with a "
            "build for CPUs (OPD_BUILD=cpu bash launch/setup.sh) leaves it out"
        )


def check_machine(recipe: Recipe) -> None:
    """EngineError for what is missing or broken on this machine, with the package to install or remove."""
    check_gpu()
    for package, wanted in wanted_packages(recipe).items():
        if not importlib.util.find_spec(package):
            how = "flash-attn --no-build-isolation (it wants nvcc)" if package == "flash_attn" else package
            raise EngineError(f"{wanted}, and {package} is not installed; pip install {how}, or change the recipe")
    if recipe.student.gradient_checkpointing == "offload" and not torch.cuda.is_available():
        raise EngineError(
            "student.gradient_checkpointing is offload, which moves block inputs from a GPU to the host, and there is "
            f"no GPU; {elsewhere()}set it to true"
        )
    if recipe.samples:
        check_engine(recipe.rollout)
    for tool, package in {"c++": "g++ (a C++ compiler)", "ninja": "ninja"}.items():
        if not shutil.which(tool) and not (Path(sys.executable).parent / tool).exists():
            raise EngineError(f"DeepSpeed compiles at its first start and finds no {tool!r} on PATH; install {package}")
    if importlib.util.find_spec("torchvision"):
        try:
            importlib.import_module("torchvision")
        except (RuntimeError, ImportError) as error:
            raise EngineError(
                f"torchvision does not fit this torch ({error}) and breaks transformers; "
                "pip uninstall torchvision torchaudio torchcodec (a text-only trainer needs none of them)"
            ) from None
