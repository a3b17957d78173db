"""Prompts from a hub data set or a local file, in the model's own chat template."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from reprlib import repr as short
from typing import Any

import torch
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from opd.batch import Prompt
from opd.config import PromptSettings
from opd.errors import DataError, reason_of
from opd.grading.extract import THOUGHTS_BEGIN, THOUGHTS_END
from opd.seeds import generator_for


@dataclass(frozen=True)
class PromptSet:
    """The prompts that are fit for training, and how many were not: too long, or said before."""

    prompts: list[Prompt]
    too_long: int
    duplicates: int
    digest: str = ""
    """SHA-256 of their questions and known answers, in order: token ids may hold the day, which templates write."""

    @property
    def words(self) -> str:
        """How many there are, and how many were dropped, for the user."""
        dropped = f"{self.too_long} longer than prompts.max_tokens, {self.duplicates} duplicates dropped"
        return f"{len(self.prompts)} prompts ({dropped})"

    def of_step(self, step: int, count: int, *, seed: int) -> list[Prompt]:
        """The step's prompts: the data in a new seeded order each epoch, none lost between epochs."""
        total = len(self.prompts)
        chosen = []
        for place in range(step * count, (step + 1) * count):
            order = _epoch_order(total, place // total, seed)
            chosen.append(self.prompts[order[place % total]])
        return chosen


@lru_cache(maxsize=2)
def _epoch_order(total: int, epoch: int, seed: int) -> list[int]:
    return torch.randperm(total, generator=generator_for("prompts", seed, epoch)).tolist()


def load_prompts(settings: PromptSettings, tokenizer: PreTrainedTokenizerBase) -> PromptSet:
    """Tokenised prompts; over-long and duplicate ones dropped and counted. Raises DataError in one line."""
    prompts, seen, too_long, duplicates = [], set(), 0, 0
    asked: set[str] = set()
    digest = hashlib.sha256()
    for number, row in enumerate(load_rows(settings), start=1):
        question = _cell(row, settings.question, number, settings)
        if repr(question) in asked:
            duplicates += 1  # before it is rendered: some data sets hold each prompt a hundred times
            continue
        asked.add(repr(question))
        ids = render(
            question,
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
            prompts.append(Prompt(len(prompts), ids, _extra(row, number, settings)))
            digest.update(repr((question, prompts[-1].extra.get("answer"))).encode())
    if not prompts:
        raise DataError(
            f"no prompt is left of {_name(settings)}: {too_long} longer than prompts.max_tokens {settings.max_tokens}, "
            f"{duplicates} duplicates; raise max_tokens or give other data"
        )
    return PromptSet(prompts, too_long, duplicates, digest.hexdigest())


def load_rows(settings: PromptSettings) -> Iterable[dict[str, Any]]:
    """The data set's rows with the columns that the recipe names; the hub's are read when they are reached.

    Raises DataError in one line.
    """
    rows, columns = _hub_rows(settings) if settings.path is None else _file_rows(Path(settings.path), settings)
    for column in filter(None, (settings.question, settings.answer)):
        if rows and column not in columns:
            raise DataError(f"{_name(settings)} has no column {column!r}; it has {', '.join(columns)}")
    return rows


def _file_rows(path: Path, settings: PromptSettings) -> tuple[list[dict[str, Any]], list[str]]:
    import pyarrow
    import pyarrow.parquet

    if path.suffix not in (".jsonl", ".parquet"):
        raise DataError(f"prompts.path {settings.path!r} is neither .jsonl nor .parquet; give one of these")
    if not path.is_file():
        raise DataError(f"there is no file at prompts.path {settings.path!r}; give a .jsonl or .parquet file")
    if path.stat().st_size == 0:
        raise DataError(f"prompts.path {settings.path!r} is empty; give a file with at least one row")
    try:
        if path.suffix == ".parquet":
            table = pyarrow.parquet.read_table(path)
            return table.to_pylist(), table.column_names
        rows = [_json_row(line, number, settings) for number, line in enumerate(path.open(), start=1) if line.strip()]
    except (OSError, UnicodeDecodeError, pyarrow.ArrowException) as error:
        raise DataError(
            f"can't read prompts.path {settings.path!r} ({reason_of(error)}); write the file anew"
        ) from None
    return rows, list(dict.fromkeys(key for row in rows for key in row))


def _json_row(line: str, number: int, settings: PromptSettings) -> dict[str, Any]:
    try:
        row = json.loads(line.strip())
    except json.JSONDecodeError as error:
        raise DataError(
            f"prompts.path {settings.path!r}, line {number} is not JSON ({error.msg}, column {error.colno}); "
            "write one object a line"
        ) from None
    if not isinstance(row, dict):
        raise DataError(
            f"prompts.path {settings.path!r}, line {number} holds a {type(row).__name__}; write one object a line"
        )
    return row


def _hub_rows(settings: PromptSettings) -> tuple[Iterable[dict[str, Any]], list[str]]:
    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError

    try:
        rows = load_dataset(settings.dataset, settings.name, split=settings.split, revision=settings.revision)
    except (DatasetGenerationError, ValueError, OSError, ConnectionError) as error:
        reason = reason_of(error.__cause__ or error)
        raise DataError(
            f"can't read {_name(settings)} ({reason}); check name and split, or give a local file as prompts.path"
        ) from None
    return rows, rows.column_names


def render(
    question: str | list[dict[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    instruction: str = "",
    system: str | None = None,
    template_settings: dict[str, Any] | None = None,
) -> list[int]:
    """Token ids of a question in the tokenizer's chat template, up to where the model begins to speak."""
    messages = question if isinstance(question, list) else [{"role": "user", "content": question}]
    messages = [*messages[:-1], {**messages[-1], "content": messages[-1]["content"] + instruction}]
    if system is not None:
        messages = [{"role": "system", "content": system}, *messages]
    if not tokenizer.chat_template:
        raise DataError(
            f"the tokenizer of {tokenizer.name_or_path!r} has no chat template; "
            "give a chat model, or set one in its folder"
        )
    try:
        return tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=False, **(template_settings or {})
        )
    except TemplateError as error:
        raise DataError(
            f"the chat template refuses a prompt ({error}); see prompts.system and prompts.chat_template_kwargs"
        ) from None


def template_warning(settings: PromptSettings, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """A line for settings of the chat template that change nothing: templates pass over what they don't know."""
    given = settings.chat_template_kwargs

    def prompt(**template: Any) -> list[int] | None:
        try:
            return render("?", tokenizer, system=settings.system, template_settings=template)
        except DataError:
            return None

    idle = [name for name in given if prompt(**given) == prompt(**{k: v for k, v in given.items() if k != name})]
    if not idle:
        return None
    return (
        f"warning: prompts.chat_template_kwargs {', '.join(idle)} changes no prompt: the template does not read it, or "
        "does so anyway"
    )


def other_template_warning(
    settings: PromptSettings, student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase
) -> str | None:
    """A line where the teacher's own chat template writes a prompt otherwise than the student's, by which both read."""
    try:
        ours, theirs = (
            student.decode(render("?", each, system=settings.system, template_settings=settings.chat_template_kwargs))
            for each in (student, teacher)
        )
    except DataError:
        return None  # the student's is refused elsewhere; a teacher without one has no other
    if ours == theirs:
        return None
    return (
        f"warning: the teacher's own chat template writes {theirs!r} where the student's, which both read here, writes "
        f"{ours!r}; its scores by its own template are not what is distilled (prompts.system can make them agree)"
    )


def completion_text(tokenizer: PreTrainedTokenizerBase, token_ids: list[int]) -> str:
    """What a completion says: special tokens left out, but for the marks of a thought, which the grader reads."""
    marks = tokenizer.convert_tokens_to_ids([THOUGHTS_BEGIN, THOUGHTS_END])
    silent = {*tokenizer.all_special_ids} - {*marks}
    return tokenizer.decode([i for i in token_ids if i not in silent])


def _cell(row: dict[str, Any], column: str, number: int, settings: PromptSettings) -> str | list[dict[str, Any]]:
    """The row's question: text, or chat messages that end with the user's."""
    value = row.get(column)
    if isinstance(value, str) and value.strip():
        return value
    if isinstance(value, list) and value and all(isinstance(m, dict) for m in value):
        messages = [message | {"content": _text(message.get("content"))} for message in value]
        if all(isinstance(message["content"], str) for message in messages):
            _check_roles([message.get("role") for message in messages], column, number, settings)
            return messages
    raise DataError(
        f"{_name(settings)}, row {number}: column {column!r} holds {short(value)}; "
        "a question is text, or a list of chat messages of text"
    )


def _text(content: Any) -> Any:
    """A message's text, where it is text or comes in parts that are all text."""
    parts = content if isinstance(content, list) else []
    if parts and all(isinstance(p, dict) and p.get("type") == "text" and isinstance(p.get("text"), str) for p in parts):
        return "".join(part["text"] for part in parts)
    return content


def _check_roles(roles: list[str | None], column: str, number: int, settings: PromptSettings) -> None:
    where = f"{_name(settings)}, row {number}: the messages of column {column!r}"
    if roles[-1] != "user":
        raise DataError(f"{where} end with {roles[-1]!r}, and the student answers a user; leave the answer out")
    if settings.system is not None and "system" in roles:
        raise DataError(f"{where} hold a system message, and prompts.system gives another; remove one of them")


def _extra(row: dict[str, Any], number: int, settings: PromptSettings) -> dict[str, Any]:
    extra = {k: v for k, v in row.items() if k != settings.question}
    if settings.answer is None:
        return extra
    answer, marker = row.get(settings.answer), settings.answer_after
    if answer is None or (marker is not None and marker not in str(answer)):
        lacks = f"no {marker!r} (prompts.answer_after)" if marker else "no answer"
        raise DataError(
            f"{_name(settings)}, row {number}: column {settings.answer!r} holds {lacks}; mend the row, or "
            "train without prompts.answer"
        )
    return extra | {"answer": str(answer).rpartition(marker)[2].strip() if marker else str(answer)}


def _name(settings: PromptSettings) -> str:
    return f"prompts.path {settings.path!r}" if settings.path else f"prompts.dataset {settings.dataset!r}"
