"""How a model is asked: a task's problems as its prompts, and how answers are sampled."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, replace
from typing import Any, Literal

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt
from transformers import PreTrainedTokenizerBase

from eval.tasks import Task
from eval.tasks.base import GREEDY
from opd.batch import Prompt
from opd.errors import DataError, RecipeError
from opd.grading.extract import first_box_end, opens_thought
from opd.prompts import render
from opd.record import Record, Share
from opd.rollout.engine import Sampling

NEXT_QUESTION = re.compile(r"\n\s*[#*]*\s*(?:Question|Q|Problem|Human|User)\b[^\n]{0,20}:")
"""In the few-shot form a model goes on with questions of its own."""


Thinking = Literal["on", "off", "template"]
Form = Literal["chat", "few_shot"]


class Asking(Record):
    """What a user may change of a task's own protocol; null leaves it."""

    problems: PositiveInt | None = None
    """The first so many problems, or all."""
    samples: PositiveInt | None = None
    """Answers a problem; more than one of a greedy task are sampled at temperature 1."""
    temperature: NonNegativeFloat | None = None
    """0 is greedy, and one answer a problem."""
    top_p: Share = 1.0
    """Sample among the likeliest tokens that hold this mass."""
    top_k: NonNegativeInt = 0
    """Sample among so many likeliest tokens; 0 among all."""
    max_new_tokens: PositiveInt | None = None
    """An answer is cut off here, and counted as truncated."""
    thinking: Thinking = "off"
    """enable_thinking of the chat template, where it knows that; `template` leaves it to the template."""
    form: Form = "chat"
    """chat: the model's chat template. few_shot: worked examples in plain text, for base models."""
    seed: NonNegativeInt = 0
    """Keys every sampled answer, with its task, problem and number."""
    system: str | None = None
    """System message of the chat."""

    def sampling(self, task: Task) -> Sampling:
        """The task's own sampling with these changes. Raises RecipeError where one would have no effect."""
        own = task.sampling
        several = (self.samples or own.samples) > 1 if self.temperature is None else self.temperature > 0
        temperature = self.temperature if self.temperature is not None else own.temperature or float(several)
        samples = self.samples or (own.samples if temperature else 1)
        if temperature == GREEDY and samples > 1:
            raise RecipeError(
                f"{samples} greedy answers to a problem are all the same; give --temperature, or one sample"
            )
        if temperature == GREEDY and (self.top_p, self.top_k) != (1.0, 0):
            raise RecipeError("--top-p and --top-k have no effect on greedy answers; give --temperature above 0")
        return replace(
            own,
            samples=samples,
            temperature=temperature,
            max_new_tokens=self.max_new_tokens or own.max_new_tokens,
            seed_key=("evaluate", task.name, self.seed),
            top_p=self.top_p,
            top_k=self.top_k,
        )


@dataclass(frozen=True)
class Asked:
    """A task as one model is asked: its problems as prompts (question and answer in `extra`), and the sampling.

    in_thought: the prompt opens a thought, which the answer has to end.
    """

    task: Task
    asking: Asking
    sampling: Sampling
    prompts: list[Prompt]
    in_thought: bool

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt with its answer."""
        return max(len(prompt.token_ids) for prompt in self.prompts) + self.sampling.max_new_tokens

    def answer(self, text: str) -> str:
        """The part of a completion that answers; in the few-shot form, up to the first box or the next question."""
        if self.asking.form == "chat":
            return text
        said = NEXT_QUESTION.split(text, maxsplit=1)[0]
        return said[: first_box_end(said)]

    def of_model(self, weights: str) -> Asked:
        """The same with seeds of the model's own: two models that share their draws agree more than they do."""
        return replace(self, sampling=replace(self.sampling, seed_key=(*self.sampling.seed_key, weights)))

    def identity(self) -> dict[str, Any]:
        """Everything but the weights that an answer depends on: task, version, prompts as token ids, sampling."""
        s = self.sampling
        return {
            "task": self.task.name,
            "version": self.task.version,
            "problems": len(self.prompts),
            "data": _sha256([p.extra for p in self.prompts]),
            "prompts": _sha256([p.token_ids for p in self.prompts]),
            "form": self.asking.form,
            "shots": len(self.task.shots) if self.asking.form == "few_shot" else 0,
            "thinking": self.asking.thinking,
            "samples": s.samples,
            "temperature": s.temperature,
            "top_p": s.top_p,
            "top_k": s.top_k,
            "max_new_tokens": s.max_new_tokens,
            "seed": self.asking.seed if s.temperature else None,
        }


def ask(
    task: Task, tokenizer: PreTrainedTokenizerBase, asking: Asking, template_settings: dict[str, Any] | None = None
) -> Asked:
    """The task's problems as this tokenizer's model is asked. Raises an OpdError in one line.

    template_settings: the chat template's own, as a recipe's prompts have them.
    """
    if asking.form == "few_shot" and not task.shots:
        raise RecipeError(f"task {task.name} has no worked examples; leave --form few_shot out")
    if asking.form == "few_shot" and (asking.system is not None or asking.thinking == "on"):
        raise RecipeError("--system and --thinking belong to a chat template and have no effect with --form few_shot")
    settings = {"enable_thinking": asking.thinking == "on"} if asking.thinking != "template" else {}
    settings |= template_settings or {}
    prompts = []
    if asking.thinking == "on" and not _knows_thinking(tokenizer):
        raise RecipeError("--thinking on has no effect: this model's chat template does not read enable_thinking")
    for index, problem in enumerate(task.load(asking.problems)):
        if asking.form == "few_shot":
            ids = tokenizer(few_shot(task, problem["question"])).input_ids
        else:
            _wants_template(tokenizer)
            ids = render(
                problem["question"],
                tokenizer,
                instruction=task.instruction,
                system=asking.system,
                template_settings=settings,
            )
        prompts.append(Prompt(index, ids, problem))
    in_thought = opens_thought(tokenizer.decode(prompts[0].token_ids))
    return Asked(task, asking, asking.sampling(task), prompts, in_thought)


def few_shot(task: Task, question: str) -> str:
    """The task's worked examples, then the question, as a base model can go on with."""
    shown = [f"Question: {shot.question}\nAnswer: {shot.worked}\n\n" for shot in task.shots]
    return "".join(shown) + f"Question: {question}\nAnswer:"


def _knows_thinking(tokenizer: PreTrainedTokenizerBase) -> bool:
    _wants_template(tokenizer)
    on, off = (render("?", tokenizer, template_settings={"enable_thinking": flag}) for flag in (True, False))
    return on != off


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def _wants_template(tokenizer: PreTrainedTokenizerBase) -> None:
    if not tokenizer.chat_template:
        raise DataError(
            f"the tokenizer of {tokenizer.name_or_path!r} has no chat template; give a chat model, or --form few_shot "
            "for a base model"
        )
