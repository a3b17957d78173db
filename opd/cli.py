"""The `opd` command. It alone joins opd and eval: it hands `train` the evaluation."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
import warnings
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

import typer

from opd.errors import OpdError
from opd.hub import Part
from opd.model_spec import Precision
from opd.rollout.settings import EngineName

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
Form = Literal["chat", "few_shot"]
Thinking = Literal["on", "off", "template"]
UsageError = typer.BadParameter.__base__
"""What typer raises for a command line that it can't read."""

RecipePath = Annotated[
    str, typer.Argument(metavar="RECIPE", help="YAML file; `opd schema` lists every key of it, recipes/ has examples.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY.PATH=VALUE]...", help="Overrides, as in loss.0.select.keep=0.3; values are YAML."),
]


RESULTS = Path("results")
INTERRUPTED = 130
"""The exit code of Ctrl-C."""
PATIENCE_S = 10
"""How long other ranks wait for rank 0 to say the same; a launcher ends them meanwhile, unless only they failed."""


@app.command()
def train(
    recipe: RecipePath,
    overrides: Overrides = None,
    runs: Annotated[Path, typer.Option(help="Where runs live.")] = Path("runs"),
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Continue the run that name= names from its newest checkpoint; without one it begins anew."
        ),
    ] = False,
) -> None:
    """Distil: the student learns from the teacher on its own rollouts."""
    from opd.recipe_text import load_recipe
    from opd.run import open_run

    wanted = load_recipe(recipe, overrides)
    folder = open_run(wanted, recipe_path=recipe, runs=runs, resume=resume)
    from eval.runner import Evaluation
    from opd.doctor import check

    checked = check(wanted, Evaluation)
    resume = resume and folder.can_resume
    if resume:
        folder.refuse_another(checked.recipe)
    from opd.train import train as run_training

    run_training(checked, folder, resume=resume)


@app.command()
def doctor(
    recipe: RecipePath,
    overrides: Overrides = None,
    models: Annotated[
        bool, typer.Option("--models", help="Load both models too, and measure how they end a turn on fresh rollouts.")
    ] = False,
) -> None:
    """Say what is wrong with a recipe, its data, its models' tokenizers or this machine, before anything loads."""
    from eval.runner import Evaluation
    from opd.distributed import is_main_process, world_size, zero_stage
    from opd.doctor import check
    from opd.errors import RecipeError
    from opd.memory import memory_lines
    from opd.recipe_text import load_recipe
    from opd.rollout.start import engine_type

    if models and world_size() > 1:
        raise RecipeError(
            f"opd doctor --models is one process, and {world_size()} were launched; start it without accelerate launch"
        )
    checked = check(load_recipe(recipe, overrides), Evaluation)
    if not is_main_process():
        return
    typer.echo(f"tokenizers agree on {len(checked.tokenizer)} tokens")
    if models:
        from opd.train import measure_stops

    for line in measure_stops(checked) if models else [checked.stop.words(checked.tokenizer)]:
        typer.echo(line)
    typer.echo(checked.teacher_head.words)
    typer.echo(f"attention by {checked.recipe.student.attention}, the teacher's by {checked.recipe.teacher.attention}")
    for line in checked.warnings:
        typer.echo(line)
    for line in memory_lines(checked.recipe, ranks=world_size(), zero_stage=zero_stage()):
        typer.echo(line)
    typer.echo(checked.prompts.words)
    typer.echo(f"rollouts by {engine_type(checked.recipe.rollout)}; all is well")


@app.command()
def push(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    repo: Annotated[str, typer.Argument(help="user/name on the hub; new, or without a file.")],
    part: Annotated[Part, typer.Option(help="merged: of student.lora.merge; best: of evaluate.every.")] = "model",
    public: Annotated[
        bool, typer.Option("--public", help="Of a new repository, and of an empty one. Default: private.")
    ] = False,
) -> None:
    """Upload a finished run's model with its card to the Hugging Face hub; never over anything that is there."""
    from pydantic import ValidationError

    from opd.errors import HubError
    from opd.hub import HubSettings
    from opd.hub import push as upload

    try:
        hub = HubSettings(repo=repo, private=not public, part=part)
    except ValidationError:
        raise HubError(f"{repo!r} is no repository of the hub; write user/name") from None
    typer.echo(upload(run, hub))


@app.command(name="eval")
def evaluate(
    model: Annotated[list[str], typer.Option(help="Hugging Face id or local folder; may be given several times.")],
    tasks: Annotated[str, typer.Option(help="math500, aime24, aime25, gsm8k, arithmetic, skills; commas between.")],
    teacher: Annotated[str | None, typer.Option(help="Scored too, and every model's fidelity to it reported.")] = None,
    problems: Annotated[int | None, typer.Option(min=1, help="The first so many of each task. Default: all.")] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="Answers to a problem. Default: the task's.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0, help="0 is greedy. Default: the task's.")] = None,
    top_p: Annotated[float, typer.Option(min=1e-9, max=1, help="Sample the likeliest tokens of this mass.")] = 1.0,
    top_k: Annotated[int, typer.Option(min=0, help="Sample so many likeliest tokens; 0: all.")] = 0,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Default: the task's.")] = None,
    thinking: Annotated[Thinking, typer.Option(help="enable_thinking of a chat template that knows it.")] = "off",
    form: Annotated[Form, typer.Option(help="few_shot is for base models, which have no chat template.")] = "chat",
    system: Annotated[str | None, typer.Option(help="System message of the chat.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Keys every sampled answer.")] = 0,
    engine: Annotated[EngineName, typer.Option(help="auto takes vllm where it is installed.")] = "auto",
    precision: Annotated[Precision, typer.Option(help="Of weights and arithmetic.")] = "bf16",
    kv_cache_mib: Annotated[int | None, typer.Option(min=1, help="vLLM's cache on a CPU. Default: 1024.")] = None,
    out: Annotated[Path, typer.Option(help="Answers and reports; what is finished there is not repeated.")] = RESULTS,
) -> None:
    """Score models on held-out problems: standard errors, paired comparisons, fidelity to a teacher."""
    from eval.asking import Asking
    from eval.commands import evaluate_models
    from eval.runner import host_of
    from eval.tasks import tasks_named

    asking = Asking(
        problems=problems,
        samples=samples,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        max_new_tokens=max_new_tokens,
        thinking=thinking,
        form=form,
        seed=seed,
        system=system,
    )
    models = list(dict.fromkeys([*model, *([teacher] if teacher else [])]))
    evaluate_models(models, teacher, tasks_named(tasks), asking, host_of(engine, precision, kv_cache_mib), out)


@app.command()
def compare(
    results: Annotated[list[Path], typer.Argument(metavar="RESULT RESULT…", help="Folders that `opd eval` filled.")],
) -> None:
    """Compare finished results on the same problems: each with the first, paired, problem by problem."""
    from eval.commands import compare_folders

    compare_folders(results)


@app.command()
def schema(as_json: Annotated[bool, typer.Option("--json", help="As JSON schema, for editors.")] = False) -> None:
    """Every key of a recipe with its type, default and one sentence; one key a line."""
    from opd.config import Recipe
    from opd.recipe_text import field_lines

    if as_json:
        typer.echo(json.dumps(Recipe.model_json_schema(), indent=2, ensure_ascii=False))
        return
    for line in field_lines():
        typer.echo(f"{line.key:<40} {line.type:<36} {line.default:<14} {line.sentence}")


def main() -> None:
    """Entry point: an error that the user can mend is one line from rank 0 and an exit code, never a traceback."""
    _hush()
    try:
        code = app(sys.argv[1:] or ["--help"], prog_name="opd", standalone_mode=False)
        if code == INTERRUPTED:
            _refuse("interrupted; `opd eval` goes on when it is started again, `opd train` with --resume", INTERRUPTED)
        sys.exit(code)
    except OpdError as error:
        _refuse(str(error), error.exit_code)
    except UsageError as error:
        command = error.ctx.command_path if error.ctx else "opd"
        message = error.format_message()
        _refuse(f"{message}{'' if message.endswith(('.', '?')) else '.'} See `{command} --help`.", 2)


def _hush() -> None:
    """Libraries' notices for developers, and their progress bars where nobody watches; a user's own setting wins."""
    os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "error")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    if "HF_HUB_OFFLINE" not in os.environ and not _hub_has_an_address():
        os.environ["HF_HUB_OFFLINE"] = "1"
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if not sys.warnoptions:
        warnings.filterwarnings("ignore", category=FutureWarning)


def _hub_has_an_address() -> bool:
    """Whether the hub's name resolves, or a proxy would do that: else each file would be asked for during a minute."""
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True
    try:
        socket.getaddrinfo(urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co")).hostname, 443)
    except OSError:
        return False
    return True


def _refuse(message: str, exit_code: int) -> None:
    from opd.distributed import is_main_process

    line = " ".join(message.split())
    if is_main_process():
        print("opd:", line, file=sys.stderr, flush=True)
    else:
        time.sleep(PATIENCE_S)  # the launcher ends every rank with the first: rank 0 speaks before that
        print(f"opd, rank {os.environ['RANK']}:", line, file=sys.stderr, flush=True)
    sys.exit(exit_code)
