"""Scores a model on a task, on whatever engine is up."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from eval.statistics import mean_and_stderr
from eval.tasks import TASKS
from opd.batch import Prompt
from opd.config import EvaluateSettings, PromptSettings
from opd.distributed import Ranks
from opd.errors import RecipeError
from opd.models import DTYPES, load_tokenizer
from opd.prompts import render
from opd.rewards import grade
from opd.rollout.engine import RolloutEngine, Sampling
from opd.rollout.settings import RolloutSettings
from opd.rollout.start import start_engine
from opd.stop import stop_tokens


class Evaluation:
    """A task's problems in a model's own chat template, answered greedily and graded.

    `prompts` are its problems as prompts, with the system message and template settings of the recipe's; calling it
    scores an engine: {score, stderr, n, truncated}.
    """

    def __init__(
        self, settings: EvaluateSettings, tokenizer: PreTrainedTokenizerBase, prompts: PromptSettings | None = None
    ) -> None:
        shared = {"system": prompts.system, "template_settings": prompts.chat_template_kwargs} if prompts else {}
        task = task_named(settings.task)
        self.tokenizer = tokenizer
        self.max_new_tokens = settings.max_new_tokens or task.max_new_tokens
        self.prompts = [
            Prompt(
                i,
                render(p["question"], tokenizer, instruction=task.instruction, **shared),
                {"answer": p["answer"]},
            )
            for i, p in enumerate(task.load(settings.problems))
        ]

    def __call__(self, engine: RolloutEngine) -> dict[str, float]:
        """One greedy answer a problem; collective."""
        rollouts = engine.generate(self.prompts, Sampling(1, self.max_new_tokens, temperature=0.0))
        texts = self.tokenizer.batch_decode([r.completion for r in rollouts], skip_special_tokens=True)
        scores = [grade(text, r.extra["answer"]) for text, r in zip(texts, rollouts, strict=True)]
        truncated = sum(r.finish == "length" for r in rollouts) / len(rollouts)
        return mean_and_stderr(scores) | {"truncated": truncated}


def task_named(name: str):
    """The task; RecipeError in one line if there is none."""
    if name not in TASKS:
        raise RecipeError(f"evaluate.task: there is no task {name!r}; choose one of {', '.join(TASKS)}")
    return TASKS[name]


def score_model(model: str, settings: EvaluateSettings, *, engine: str, precision: str) -> dict[str, float]:
    """Score a model folder or hub id on its own, by an engine that is started for it."""
    tokenizer = load_tokenizer(model)
    evaluation = Evaluation(settings, tokenizer)
    started = start_engine(
        model,
        RolloutSettings(type=engine),
        Ranks(),
        dtype=DTYPES[precision],
        max_tokens=max(len(p.token_ids) for p in evaluation.prompts) + evaluation.max_new_tokens,
        stop=stop_tokens(tokenizer, model),
    )
    try:
        return evaluation(started)
    finally:
        started.close()
