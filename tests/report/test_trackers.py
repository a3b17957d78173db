"""Trackers get metrics, every leaf of the recipe and a table of samples; each one that is installed, for real."""

import importlib.util
import json
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from opd.errors import EngineError
from opd.report.trackers import COLUMNS, TABLES, leaves, log_samples, start_settings, start_trackers
from opd.run import RunFolder
from opd.train import one_step
from tests import cases
from tests.test_train import parts_of


def needs(package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not importlib.util.find_spec(package), reason=f"needs {package}, an optional tracker")


@pytest.fixture
def tracked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The folder of a run of two steps with that tracker, all of whose files lie below the test's folder."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    monkeypatch.chdir(tmp_path)
    for name, value in {
        "WANDB_MODE": "offline",
        "WANDB_SILENT": "true",
        "TRACKIO_DIR": str(tmp_path / "trackio"),
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def run(name: str, steps: tuple[int, ...] = (0, 1)) -> RunFolder:
        recipe = cases.recipe(metrics={"trackers": [name], "rollouts": 2, "full_every": 5}, steps=2)
        parts = parts_of(recipe, tmp_path / "mine", lambda rollout, step: cases.rollouts())
        accelerator = Accelerator(cpu=True, log_with=[name], project_dir=str(parts.folder.path))
        start_trackers(accelerator, recipe, parts.folder)
        parts.run.trainer.accelerator = SimpleNamespace(log=accelerator.log, trackers=accelerator.trackers)
        for index in steps:
            one_step(parts, index)
        accelerator.end_training()
        AcceleratorState._reset_state(True)
        return parts.folder

    return run


def test_tensorboard_forgets_the_steps_that_a_resumed_run_makes_again(tracked):
    folder = tracked("tensorboard")
    (folder.checkpoints / "step-000001").mkdir(parents=True)
    tracked("tensorboard", steps=(1,))
    assert [event.step for event in EventAccumulator(str(folder.path / "opd")).Reload().Scalars("loss")] == [1, 2]


def test_tensorboard_holds_scalars_and_one_table(tracked):
    folder = tracked("tensorboard")
    events = EventAccumulator(str(folder.path / "opd"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2]
    (table,) = events.Tensors("rollouts/text_summary")
    text = table.tensor_proto.string_val[0].decode()
    assert table.step == 1 and text.count("\n") == 4 and "⟨" in text and COLUMNS[1] in text


@needs("wandb")
def test_wandb_holds_the_recipe_metrics_and_a_table(tracked):
    folder = tracked("wandb")
    (run,) = (folder.path / "wandb").glob("offline-run-*")
    (stored,) = run.glob("*.wandb")
    words = b"loss.0.objective.type", b"reverse_kl", b"grad_norm"
    assert any(all(w in stored.read_bytes() for w in words) or time.sleep(0.2) for _ in range(100)), "its own process"
    (table,) = run.rglob("*.table.json")
    found = json.loads(table.read_text())
    assert found["columns"] == COLUMNS and len(found["data"]) == 2 and "⟨" in found["data"][0][2]


def test_a_resumed_run_goes_on_where_its_trackers_were(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_RUN_ID", raising=False)
    folder = RunFolder(tmp_path / "mine")
    new = start_settings(folder)
    assert new["tensorboard"] == {} and "id" not in new["wandb"]
    began = ("wandb/offline-run-20260102_101112-a1-b2", "wandb/run-20260102_101111-first")
    for name in ("checkpoints/step-000004", "checkpoints/step-000008", *began):
        (folder.path / name).mkdir(parents=True)
    resumed = start_settings(folder)
    assert resumed["tensorboard"] == {"purge_step": 9}
    assert resumed["wandb"] == new["wandb"] | {"id": "a1-b2", "resume": "allow"}
    monkeypatch.setenv("WANDB_RUN_ID", "mine")
    assert start_settings(folder)["wandb"] == new["wandb"], "W&B reads the variable"


@needs("trackio")
def test_trackio_holds_metrics(tracked, tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "trackio"]:
        monkeypatch.delitem(sys.modules, name)  # it reads its folder when it is first imported
    tracked("trackio")
    stored = b"".join(path.read_bytes() for path in (tmp_path / "trackio").rglob("*") if path.is_file())
    assert all(words in stored for words in (b"loss.0.objective.type", b"grad_norm"))


@needs("sqlalchemy")
@needs("mlflow")
def test_mlflow_holds_the_recipe_metrics_and_a_table(tracked, tmp_path):
    tracked("mlflow")
    import mlflow

    (run,) = mlflow.search_runs(experiment_names=["opd"], output_format="list")
    assert run.info.run_name == "mine" and run.data.params["loss.0.objective.type"] == "reverse_kl"
    assert [m.step for m in mlflow.MlflowClient().get_metric_history(run.info.run_id, "loss")] == [1, 2]
    (table,) = Path(mlflow.artifacts.download_artifacts(run_id=run.info.run_id, artifact_path="rollouts")).iterdir()
    assert list(json.loads(table.read_text())) == COLUMNS


def test_a_tracker_that_does_not_start_is_one_line(tmp_path):
    """Before a model loads: W&B without a login, MLflow without its server or its database's library."""

    def init_trackers(*_, **__):
        raise ValueError("api_key not configured\n  more lines")

    recipe = cases.recipe(metrics={"trackers": ["wandb"]})
    with pytest.raises(EngineError, match=r"wandb does not start \(api_key not configured.*WANDB_MODE=offline") as said:
        start_trackers(SimpleNamespace(init_trackers=init_trackers), recipe, RunFolder(tmp_path / "mine"))
    assert "\n" not in str(said.value) and said.value.exit_code == 2


@pytest.mark.parametrize(("rollouts", "expected"), [(2, [0, 1, "table"]), (0, [])])
def test_only_the_rollouts_that_a_table_shows_are_decoded(rollouts, expected, tmp_path, monkeypatch):
    shown: list[int | str] = []
    monkeypatch.setattr("opd.report.trackers._row", lambda i, *_: shown.append(i) or [i])
    monkeypatch.setitem(TABLES, "mine", lambda tracker, rows, step: shown.append("table"))
    parts = parts_of(cases.recipe(metrics={"rollouts": rollouts}), tmp_path / "run", lambda *_: [])
    outcome = cases.taken(parts.run, cases.rollouts())
    for trackers in ([SimpleNamespace(name="mine")], []):
        log_samples(trackers, outcome, parts.checked, step=1)
    assert shown == expected


def test_every_tracker_of_the_recipe_takes_tables():
    from typing import get_args

    from opd.config import MetricSettings

    (names,) = get_args(MetricSettings.model_fields["trackers"].annotation)
    assert set(get_args(names)) == set(TABLES)


def test_leaves_are_what_a_tracker_takes():
    recipe = leaves(cases.recipe().model_dump(mode="json"))
    assert recipe["loss.0.objective.type"] == "reverse_kl" and recipe["optimizer.betas.1"] == 0.999
    assert all(isinstance(value, (bool, int, float, str)) for value in recipe.values())
    assert os.sep not in "".join(recipe)
