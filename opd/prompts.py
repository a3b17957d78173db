"""Prompts from a hub data set or a local file, in the model's own chat template."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from opd.batch import Prompt
from opd.config import Prompts
from opd.errors import DataError
from opd.seeds import generator_for


@dataclass(frozen=True)
class PromptSet:
    """The prompts that are fit for training, and how many were not: too long, or said before."""

    prompts: list[Prompt]
    too_long: int
    duplicates: int

    def of_step(self, step: int, count: int, *, seed: int) -> list[Prompt]:
        """The step's prompts: the data in a new seeded order each epoch, none lost between epochs."""
        total = len(self.prompts)
        chosen = []
        for place in range(step * count, (step + 1) * count):
            order = _epoch_order(total, place // total, seed)
            chosen.append(self.prompts[order[place % total]])
        return chosen


def _epoch_order(total: int, epoch: int, seed: int) -> list[int]:
    return torch.randperm(total, generator=generator_for("prompts", seed, epoch)).tolist()


def load_prompts(settings: Prompts, tokenizer: PreTrainedTokenizerBase) -> PromptSet:
    """Tokenised prompts; over-long and duplicate ones dropped and counted. Raises DataError in one line."""
    prompts, seen, too_long, duplicates = [], set(), 0, 0
    for row in load_rows(settings):
        ids = render(
            row[settings.question],
            tokenizer,
            instruction=settings.instruction,
            system=settings.system,
            template_settings=settings.chat_template_kwargs,
        )
        if len(ids) > settings.max_tokens:
            too_long += 1
        elif tuple(ids) in seen:
            duplicates += 1
        else:
            seen.add(tuple(ids))
            prompts.append(Prompt(len(prompts), ids, _extra(row, settings)))
    if not prompts:
        raise DataError(
            f"no prompt is left of {_name(settings)}: {too_long} longer than prompts.max_tokens {settings.max_tokens}, "
            f"{duplicates} duplicates; raise max_tokens or give other data"
        )
    return PromptSet(prompts, too_long, duplicates)


def load_rows(settings: Prompts) -> list[dict[str, Any]]:
    """The data set's rows, with the columns that the recipe names. Raises DataError in one line."""
    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError

    if settings.path is not None:
        path = Path(settings.path)
        if path.suffix not in (".jsonl", ".parquet"):
            raise DataError(f"prompts.path {settings.path!r} is neither .jsonl nor .parquet; give one of these")
        if not path.is_file():
            raise DataError(f"there is no file at prompts.path {settings.path!r}; give a .jsonl or .parquet file")
        if path.stat().st_size == 0:
            raise DataError(f"prompts.path {settings.path!r} is empty; give a file with at least one row")
    try:
        if settings.path is not None:
            kind = "json" if path.suffix == ".jsonl" else "parquet"
            rows = load_dataset(kind, data_files=str(path), split="train")
        else:
            rows = load_dataset(settings.dataset, settings.name, split=settings.split, revision=settings.revision)
    except (DatasetGenerationError, ValueError, OSError, ConnectionError) as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise DataError(
            f"can't read {_name(settings)} ({reason}); check the name, or give a local file as prompts.path"
        ) from None
    for column in filter(None, (settings.question, settings.answer)):
        if column not in rows.column_names:
            raise DataError(f"{_name(settings)} has no column {column!r}; it has {', '.join(rows.column_names)}")
    return list(rows)


def render(
    question: str | list[dict[str, str]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    instruction: str = "",
    system: str | None = None,
    template_settings: dict[str, Any] | None = None,
) -> list[int]:
    """Token ids of a question in the tokenizer's chat template, up to where the model begins to speak."""
    messages = question if isinstance(question, list) else [{"role": "user", "content": question + instruction}]
    if system is not None:
        messages = [{"role": "system", "content": system}, *messages]
    if not tokenizer.chat_template:
        raise DataError("the student's tokenizer has no chat template; give a chat model, or set one in its folder")
    return tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=False, **(template_settings or {})
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


def _extra(row: dict[str, Any], settings: Prompts) -> dict[str, Any]:
    extra = {k: v for k, v in row.items() if k != settings.question}
    if settings.answer is not None:
        answer = str(row[settings.answer])
        extra["answer"] = answer.rpartition(settings.answer_after)[2].strip() if settings.answer_after else answer
    return extra


def _name(settings: Prompts) -> str:
    return f"prompts.path {settings.path!r}" if settings.path else f"prompts.dataset {settings.dataset!r}"
