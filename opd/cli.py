"""The `opd` command. It alone joins opd and eval: it hands `train` the evaluation."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from opd.errors import OpdError

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)

RecipePath = Annotated[str, typer.Argument(metavar="RECIPE", help="YAML file; see recipes/ and `opd schema`.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY.PATH=VALUE]...", help="Overrides; values are YAML.")
]


@app.command()
def train(
    recipe: RecipePath,
    overrides: Overrides = None,
    name: Annotated[str | None, typer.Option(help="Folder of the run below --runs; default recipe and time.")] = None,
    runs: Annotated[Path, typer.Option(help="Where runs live.")] = Path("runs"),
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run --name from its newest checkpoint.")
    ] = False,
) -> None:
    """Distil: the student learns from the teacher on its own rollouts."""
    from opd.config import load_recipe
    from opd.run import open_run

    wanted = load_recipe(recipe, overrides)
    folder = open_run(wanted, recipe_path=recipe, name=name, runs=runs, resume=resume)
    from eval.runner import Evaluation
    from opd.doctor import check

    checked = check(wanted, Evaluation)
    from opd.train import train as run_training

    run_training(checked, folder, resume=resume)


@app.command()
def doctor(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Say what is wrong with a recipe, its data, its models' tokenizers or this machine, before anything loads."""
    from eval.runner import Evaluation
    from opd.config import load_recipe
    from opd.doctor import check
    from opd.rollout.source import engine_type

    checked = check(load_recipe(recipe, overrides), Evaluation)
    prompts = checked.prompts
    typer.echo(f"tokenizers agree on {len(checked.tokenizer)} tokens; stop tokens {checked.stop}")
    typer.echo(f"{len(prompts.prompts)} prompts ({prompts.too_long} too long, {prompts.duplicates} duplicates dropped)")
    typer.echo(f"rollouts by {engine_type(checked.recipe.rollout)}; all is well")


@app.command(name="eval")
def evaluate(
    model: Annotated[str, typer.Option(help="Hugging Face id or local folder.")],
    task: Annotated[str, typer.Option(help="A task of eval/tasks.")],
    problems: Annotated[int, typer.Option(min=1, help="The first so many problems.")] = 200,
    engine: Annotated[str, typer.Option(help="auto, vllm or transformers.")] = "auto",
    precision: Annotated[str, typer.Option(help="bf16 or fp32.")] = "bf16",
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Default: the task's own.")] = None,
) -> None:
    """Score a model on held-out problems: exact match, greedy, with its standard error."""
    from eval.runner import score_model
    from opd.config import Evaluate

    settings = Evaluate(task=task, problems=problems, max_new_tokens=max_new_tokens)
    typer.echo(json.dumps(score_model(model, settings, engine=engine, precision=precision)))


@app.command()
def schema() -> None:
    """Every field of a recipe with its type, default and one sentence, as JSON schema."""
    from opd.config import Recipe

    typer.echo(json.dumps(Recipe.model_json_schema(), indent=2, ensure_ascii=False))


def main() -> None:
    """Entry point: an error that the user can mend is one line from rank 0 and an exit code, never a traceback."""
    try:
        app()
    except OpdError as error:
        from opd.distributed import is_main_process

        if is_main_process():
            print(f"opd: {error}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)
