"""What both sides do: the same questions step by step, as many tokens, one pair, bf16, reverse KL."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from eval.tasks.base import INSTRUCTION
from opd.errors import DataError
from opd.models import load_tokenizer
from opd.prompts import load_prompts
from opd.recipe_text import load_recipe, parse_recipe

LEARNING_RATE, BETAS, WEIGHT_DECAY = 1e-6, (0.9, 0.999), 0.1
ALL = {"type": "all"}


@dataclass(frozen=True)
class Setting:
    """One step's shape. token_budget: tokens of one of our micro-batches, padding included (two rollouts).

    ours: fields of our recipe, KEY=VALUE each, over those below; they change what ours costs, not what it learns from.
    """

    model: str
    questions: Path
    prompts: int = 8
    new_tokens: int = 96
    steps: int = 12
    token_budget: int = 512
    prompt_tokens: int = 320
    ours: tuple[str, ...] = ()

    def recipe(self, select: dict[str, Any]) -> dict[str, Any]:
        """Ours, as plain data: the model is its own teacher, and nothing is evaluated."""
        return {
            "student": {"model": self.model},
            "teacher": {"type": "local", "model": self.model},
            "prompts": {
                "path": str(self.questions),
                "instruction": INSTRUCTION,
                "max_tokens": self.prompt_tokens,
            },
            "rollout": {
                "type": "vllm",
                "samples_per_prompt": 1,
                "max_new_tokens": self.new_tokens,
                "temperature": 1.0,
            },
            "loss": [{"select": select, "objective": {"type": "reverse_kl"}}],
            "optimizer": {
                "lr": LEARNING_RATE,
                "betas": list(BETAS),
                "weight_decay": WEIGHT_DECAY,
                "schedule": "constant",
            },
            "steps": self.steps,
            "prompts_per_step": self.prompts,
            "token_budget": self.token_budget,
            "precision": "bf16",
        }


def write_recipe(setting: Setting, select: dict[str, Any], to: Path) -> None:
    """Our recipe as a file, before `setting.ours`; RecipeError where it is none with them."""
    to.write_text(yaml.safe_dump(setting.recipe(select)))
    load_recipe(to, list(setting.ours))


@dataclass(frozen=True)
class Peer:
    """One configuration of TRL. dtype: of the student's weights; rows: rollouts of a micro-batch, None for all."""

    dtype: str = "bfloat16"
    rows: int | None = None
    gradient_checkpointing: bool = False


PEERS = {
    "trl": Peer(),
    "trl, 2 rows": Peer(rows=2),
    "trl, checkpointing": Peer(gradient_checkpointing=True),
    "trl, fp32 weights": Peer(dtype="float32"),
}
"""What TRL can be told, by name. All rollouts in one micro-batch are its fastest, 2 rows are what ours takes at once.

bf16 weights spare TRL the fp32 master weights that we keep (an update of lr 1e-6 is lost without them). fp32 weights
are its own default; there its `bf16=True` does not reach the loss on a CPU, which the recorded dtype shows.
"""


def arms_of(selectors: list[str], shares: list[float]) -> dict[str, dict[str, Any]]:
    """Which tokens train in each run of ours: all, then each selector at each share.

    >>> list(arms_of(["random"], [0.5, 0.1]))
    ['ours', 'ours, random 0.5', 'ours, random 0.1']
    """
    few = {f"ours, {name} {share:g}": {"type": name, "keep": share} for name in selectors for share in shares}
    return {"ours": ALL} | few


def write_questions(data: Path, to: Path, count: int) -> None:
    """The first `count` questions of a JSONL file, once each."""
    lines = data.read_text().splitlines() if data.is_file() else []
    questions = list(dict.fromkeys(json.loads(line)["question"] for line in lines if line.strip()))[:count]
    if not questions:
        raise DataError(f"{data} has no questions; give a JSONL file, one object with a `question` a line")
    to.write_text("".join(json.dumps({"question": question}) + "\n" for question in questions))


def in_our_order(setting: Setting) -> list[str]:
    """The questions that our run asks, step after step; DataError where one would be dropped."""
    recipe = parse_recipe(setting.recipe(ALL))
    known = load_prompts(recipe.prompts, load_tokenizer(setting.model))
    questions = [json.loads(line)["question"] for line in setting.questions.read_text().splitlines()]
    if len(known.prompts) != len(questions):
        raise DataError(
            f"{known.too_long} questions are longer than {setting.prompt_tokens} tokens, and {known.duplicates} are "
            "another's twin once tokenised; give other --data"
        )
    steps = (known.of_step(step, setting.prompts, seed=recipe.seed) for step in range(setting.steps))
    return [questions[prompt.index] for prompts in steps for prompt in prompts]
