"""Experiment trackers: the resolved recipe at the start, and now and then a table of sampled completions.

Metrics go to them through accelerate. To add one that accelerate knows: its name in `MetricSettings`, what its run is
called and where it lies in `start_settings`, and how it takes a table in TABLES.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any

from transformers import PreTrainedTokenizerBase

from opd.config import Recipe
from opd.doctor import Checked
from opd.errors import EngineError, reason_of
from opd.report.markdown import markdown
from opd.run import RunFolder, checkpoints_in
from opd.step import StepResult

COLUMNS = ["step", "prompt", "completion, each token with its weight in the first term", "reward", "finish"]
Rows = list[list[Any]]
WANDB_FOLDER = re.compile(r"(?:offline-)?run-(\d{8}_\d{6})-(.+)")
"""Of one process's run: when it began, and the run's id."""


def start_trackers(accelerator: Any, recipe: Recipe, folder: RunFolder) -> None:
    """Start the recipe's trackers, each with a run of the folder's name, and hand them every leaf of the recipe.

    EngineError in one line where one does not start: nobody is logged in, its server does not answer.
    """
    if not (names := recipe.metrics.trackers):
        return
    config = leaves(recipe.model_dump(mode="json"))
    try:
        accelerator.init_trackers("opd", config=config, init_kwargs=start_settings(folder))
    except Exception as error:
        raise EngineError(
            f"metrics.trackers: {' or '.join(names)} does not start ({reason_of(error)}); log in, set its offline mode "
            "(WANDB_MODE=offline) or install what it misses, and start again with --resume; or leave it out"
        ) from error


def start_settings(folder: RunFolder) -> dict[str, dict[str, Any]]:
    """What each tracker is started with: the run's name, its own folder where it takes one, and what it goes on from.

    A resumed run goes on in its run at W&B, which keeps what it has of the steps that are made again, and so does a
    copy of the folder, unless its `wandb/` is removed or WANDB_RUN_ID names another. TensorBoard forgets those steps.
    """
    path, name = folder.path, folder.path.name
    found = [WANDB_FOLDER.fullmatch(folder.name) for folder in (path / "wandb").glob("*run-*")]
    earlier = sorted(match.groups() for match in found if match) if "WANDB_RUN_ID" not in os.environ else []
    steps = [int(checkpoint.name.removeprefix("step-")) for checkpoint in checkpoints_in(folder.checkpoints)]
    return {
        "tensorboard": {"purge_step": max(steps) + 1} if steps else {},
        "wandb": {"name": name, "dir": str(path)} | ({"id": earlier[-1][1], "resume": "allow"} if earlier else {}),
        "trackio": {"name": name},
        "mlflow": {"run_name": name},
    }


def leaves(value: Any, where: str = "") -> dict[str, Any]:
    """Every leaf of nested data by its path.

    >>> leaves({"loss": [{"weight": 1.0}], "name": None})
    {'loss.0.weight': 1.0, 'name': 'null'}
    """
    if isinstance(value, (dict, list)) and value:
        parts = value.items() if isinstance(value, dict) else enumerate(value)
        return {k: v for key, part in parts for k, v in leaves(part, f"{where}.{key}" if where else str(key)).items()}
    return {where: value if isinstance(value, (bool, int, float, str)) else "null" if value is None else str(value)}


def log_samples(trackers: list[Any], outcome: StepResult, checked: Checked, *, step: int) -> None:
    """A table of the step's first `metrics.rollouts` rollouts, each token with what it weighed."""
    shown = min(len(outcome.rollouts), checked.recipe.metrics.rollouts) if trackers else 0
    rows = [_row(i, outcome, checked.tokenizer, step) for i in range(shown)]
    for tracker in trackers if rows else []:
        TABLES[tracker.name](tracker, rows, step)


def _row(i: int, outcome: StepResult, tokenizer: PreTrainedTokenizerBase, step: int) -> list[Any]:
    rollout, table = outcome.rollouts[i], outcome.table
    weights = outcome.weights[0][table.rollout_C == i].tolist()
    tokens = (tokenizer.decode([token]) for token in rollout.completion)
    weighed = "".join(f"{token}⟨{weight:.2g}⟩" for token, weight in zip(tokens, weights, strict=True))
    return [step, tokenizer.decode(rollout.prompt), weighed, float(table.reward_B[i]), rollout.finish]


def _to_tensorboard(tracker: Any, rows: Rows, step: int) -> None:
    cells = [[str(cell).replace("|", "\\|").replace("\n", "⏎ ") for cell in row] for row in rows]
    tracker.writer.add_text("rollouts", markdown(COLUMNS, cells), global_step=step)
    tracker.writer.flush()


def _to_wandb(tracker: Any, rows: Rows, step: int) -> None:
    tracker.log_table("rollouts", columns=COLUMNS, data=rows, step=step)


def _to_trackio(tracker: Any, rows: Rows, step: int) -> None:
    import pandas
    import trackio

    tracker.log({"rollouts": trackio.Table(dataframe=pandas.DataFrame(rows, columns=COLUMNS))}, step=step)


def _to_mlflow(tracker: Any, rows: Rows, step: int) -> None:
    import mlflow

    columns = dict(zip(COLUMNS, map(list, zip(*rows, strict=True)), strict=True))
    mlflow.log_dict(columns, f"rollouts/step-{step:06d}.json")


TABLES: dict[str, Callable[[Any, Rows, int], None]] = {
    "tensorboard": _to_tensorboard,
    "wandb": _to_wandb,
    "trackio": _to_trackio,
    "mlflow": _to_mlflow,
}
"""How each tracker takes a table."""
