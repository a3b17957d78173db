"""Scores models on tasks: on the engine that is up (in training), or on engines started for it (`opd eval`)."""

from __future__ import annotations

import importlib.util
import warnings
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from eval.asking import Asked, Asking, ask
from eval.identity import key_of, short_name, weights_digest
from eval.results import Result, read_result, write_answers
from eval.samples import SampleFile, rounds, sample
from eval.scores import graded, score_of
from eval.statistics import compare
from eval.tasks import Task, task_named
from opd.batch import Prompt
from opd.config import EvaluateSettings, PromptSettings
from opd.distributed import Ranks, device_type, world_size
from opd.doctor import check_gpu
from opd.errors import EngineError, ModelError, RecipeError, RunError
from opd.metrics import Clock
from opd.model_spec import Precision
from opd.models import DTYPES, context_length, load_config, load_tokenizer, model_folder
from opd.report.progress import Progress
from opd.rollout.engine import RolloutEngine
from opd.rollout.settings import EngineName, RolloutSettings
from opd.rollout.start import engine_type, start_engine
from opd.run import environment
from opd.stop import stop_tokens


class Evaluation:
    """A task's problems in a model's own chat template, answered by whatever engine is up, and graded."""

    def __init__(
        self, settings: EvaluateSettings, tokenizer: PreTrainedTokenizerBase, prompts: PromptSettings | None = None
    ) -> None:
        asking = Asking(
            problems=settings.problems,
            samples=settings.samples,
            temperature=settings.temperature,
            max_new_tokens=settings.max_new_tokens,
            thinking="template",
            system=prompts.system if prompts else None,
        )
        self.tokenizer = tokenizer
        self.asked = ask(
            task_named(settings.task), tokenizer, asking, prompts.chat_template_kwargs if prompts else None
        )

    @property
    def prompts(self) -> list[Prompt]:
        """The task's problems."""
        return self.asked.prompts

    @property
    def max_new_tokens(self) -> int:
        """Tokens of the longest answer."""
        return self.asked.sampling.max_new_tokens

    def __call__(self, engine: RolloutEngine, *, who: str, to: Path | None) -> dict[str, Any]:
        """The score of the weights that the engine holds; collective. The result is written into `to`, if given.

        Where the untrained student's result lies beside it, `gain` is the paired difference from it.
        """
        samples = [s for prompts in rounds(self.asked) for s in sample(engine, prompts, self.asked, self.tokenizer)]
        answers = graded(samples, self.asked)
        result = Result(who, self.asked.identity() | {"weights": who}, score_of(answers), answers, environment())
        if to is None:
            return result.score
        result.write(to)
        write_answers(to, self.asked, samples, answers)
        start = to.with_name("student_start")
        if who in ("teacher", start.name) or not start.exists() or len(answers) < 2:
            return result.score
        before = read_result(start)
        if asked_otherwise := [k for k, v in self.asked.identity().items() if before.identity.get(k) != v]:
            warnings.warn(
                f"no gain over the start: it was asked otherwise ({', '.join(asked_otherwise)}; a template that writes "
                "today's date does this on another day)",
                stacklevel=2,
            )
            return result.score
        return result.score | {"gain": asdict(compare(result.flexible, before.flexible))}


@dataclass(frozen=True)
class Host:
    """What models are run on: the engine, its cache and share of a GPU, and the arithmetic."""

    rollout: RolloutSettings
    precision: Precision

    @property
    def device(self) -> torch.device:
        """Where models compute."""
        return torch.device(device_type())

    @property
    def identity(self) -> dict[str, str]:
        """What an answer may depend on."""
        engine = engine_type(self.rollout)
        versions = environment()["versions"]
        version = versions.get(engine, versions.get(f"{engine}-cpu"))
        return {"engine": f"{engine} {version}", "device": self.device.type, "precision": self.precision}


def host_of(engine: EngineName, precision: Precision, kv_cache_mib: int | None) -> Host:
    """A host that evaluates and does nothing else; EngineError for what would have no effect, or is not here."""
    check_gpu()
    rollout = RolloutSettings(type=engine, kv_cache_mib=kv_cache_mib or 1024).alone
    if kv_cache_mib is not None and (engine_type(rollout) == "transformers" or torch.cuda.is_available()):
        raise EngineError("--kv-cache-mib belongs to vllm on a CPU and has no effect here; leave it out")
    if engine_type(rollout) == "vllm" and not importlib.util.find_spec("vllm"):
        raise EngineError("--engine vllm, and vllm is not installed; pip install -e '.[cpu]' or '.[gpu]'")
    return Host(rollout, precision)


@dataclass(frozen=True)
class Study:
    """One model to be asked one task, and the folder that holds what it answered."""

    model: str
    tokenizer: PreTrainedTokenizerBase
    asked: Asked
    folder: Path
    file: SampleFile

    @property
    def missing(self) -> int:
        """Answers that are still to be sampled."""
        return len(self.asked.prompts) * self.asked.sampling.samples - len(self.file.read())


def prepare(models: list[str], tasks: list[Task], asking: Asking, host: Host, out: Path) -> list[Study]:
    """Everything that can be found wrong before a model is loaded; raises an OpdError in one line at the first."""
    if world_size() > 1:
        raise RecipeError(
            f"opd eval is one process, and {world_size()} were launched; start it without accelerate launch"
        )
    if not (parent := next(p for p in (out, *out.absolute().parents) if p.exists())).is_dir():
        raise RunError(f"--out {str(out)!r}: {str(parent)!r} is a file; give a folder")
    if twice := sorted({short_name(m) for m in models if [short_name(n) for n in models].count(short_name(m)) > 1}):
        raise RecipeError(f"two models would both be called {twice[0]!r} in the table; rename a folder")
    studies = []
    for model in models:
        tokenizer, context = load_tokenizer(model), context_length(load_config(model))
        asked = [ask(task, tokenizer, asking) for task in tasks]
        for one in asked:
            if context and one.longest > context:
                raise ModelError(
                    f"{model!r} reads {context} tokens at most, and a problem of {one.task.name} with its answer takes "
                    f"{one.longest}; lower --max-new-tokens"
                )
        weights = weights_digest(model_folder(model))
        who = {"weights": weights, "stop": stop_tokens(tokenizer, model)} | host.identity
        studies += [_study(model, tokenizer, one.of_model(weights), one.identity() | who, out) for one in asked]
    for study in studies:
        study.file.check()
    return studies


def _study(model: str, tokenizer: PreTrainedTokenizerBase, asked: Asked, identity: dict[str, Any], out: Path) -> Study:
    folder = out / short_name(model) / f"{asked.task.name}-{key_of(identity)}"
    return Study(model, tokenizer, asked, folder, SampleFile(folder / "samples.jsonl", identity, asked))


@dataclass(frozen=True)
class Evaluated:
    """A study and its result."""

    study: Study
    result: Result


def evaluate(studies: list[Study], host: Host, clock: Clock) -> list[Evaluated]:
    """Sample what is missing, an engine for each model that misses something, then grade; a result for each study."""
    by_model: dict[str, list[Study]] = {}
    for study in studies:
        by_model.setdefault(study.model, []).append(study)
    evaluated = []
    for model, of_model in by_model.items():
        if missing := [study for study in of_model if study.missing]:
            _sample(model, missing, host, clock)
        evaluated += [Evaluated(study, _result(study, clock)) for study in of_model]
    return evaluated


def _sample(model: str, studies: list[Study], host: Host, clock: Clock) -> None:
    with clock("start"):
        engine = start_engine(
            model,
            host.rollout,
            Ranks(host.device),
            dtype=DTYPES[host.precision],
            max_tokens=max(study.asked.longest for study in studies),
            stop=stop_tokens(studies[0].tokenizer, model),
        )
    try:
        for study in studies:
            asked = study.asked
            total = len(asked.prompts) * asked.sampling.samples
            name = f"{short_name(model)}, {asked.task.name}"
            with clock("sample"), Progress(total, unit="answer") as progress:
                study.file.complete(engine, study.tokenizer, partial(progress.advance, name))
    finally:
        engine.close()


def _result(study: Study, clock: Clock) -> Result:
    with clock("grade"):
        samples = study.file.read()
        answers = graded(samples, study.asked)
        score = score_of(answers)
    with clock("write"):
        result = Result(short_name(study.model), study.file.identity, score, answers, study.file.environment())
        result.write(study.folder)
        write_answers(study.folder, study.asked, samples, answers)
    return result
