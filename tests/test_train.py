"""The main job's own decisions: when it warns, when it gives up, and what a step is told. No DeepSpeed here."""

import json
import warnings
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from opd import train as main_job
from opd.batch import Rollout
from opd.config import Recipe
from opd.distributed import Ranks, Update
from opd.doctor import Checked
from opd.errors import HubError, RunError, TrainingError, UploadError
from opd.metrics import METRICS
from opd.parts import Models, Parts
from opd.prompts import PromptSet
from opd.rollout.engine import RolloutEngine
from opd.rollout.files import read_rollouts, recorded_temperature, step_file
from opd.rollout.source import Source
from opd.run import RunFolder
from opd.stop import StopTokens
from opd.teacher.placement import Placement
from opd.train import one_step, open_folder, scores_at, train
from recipes.quickstart.make_models import character_tokenizer
from tests import cases, reference


class MainTrainer(cases.PlainTrainer):
    """The plain trainer, with all that the main job asks of one; its steps of these numbers are not finite."""

    zero_stage = 0

    def __init__(self, recipe: Recipe, lost: set[int]) -> None:
        super().__init__(cases.student(recipe))
        self.accelerator = SimpleNamespace(log=lambda metrics, step: None, trackers=[])
        self.ranks, self.lost, self.steps = Ranks(), lost, 0

    def update(self, lr: float, *, idle: bool = False) -> Update:
        self.steps += 1
        skipped = self.steps in self.lost
        return Update(skipped, grad_norm=float("nan") if skipped else 1.0)

    def save(self, folder: Path) -> None:
        torch.save(self.steps, folder / "steps.pt")

    def load(self, folder: Path) -> None:
        self.steps = torch.load(folder / "steps.pt")


def parts_of(recipe: Recipe, folder: Path, source: Source, *, lost: set[int] = frozenset()) -> Parts:
    tokenizer, stop = character_tokenizer(), StopTokens([2], [5], recipe.stop_class)
    head = Placement(1, 37, "one rank")
    checked = Checked(recipe, tokenizer, PromptSet([], 0, 0), stop, None, None, head)
    run_folder = RunFolder(folder)
    if not folder.exists():
        run_folder.create(recipe, data="")
    return Parts(checked, run_folder, cases.run(recipe, trainer=MainTrainer(recipe, set(lost))), None, source)


def drifted(gap: float) -> list[Rollout]:
    """Rollouts whose sampler was so many nats from the trainer at every token."""
    model = cases.model(1, hidden=16)
    own = [reference.sampled(reference.log_probs(model, r), r).tolist() for r in cases.rollouts()]
    return [replace(r, logprobs=[x - gap for x in xs]) for r, xs in zip(cases.rollouts(), own, strict=True)]


def test_ranks_share_sequences_as_asked_and_a_sleeping_engine_follows_the_trained_weights(tmp_path, monkeypatch):
    """What no run on one CPU shows: the one is a matter of memory, the other of sleep_level 2."""
    recipe, given = cases.recipe(sequence_parallel_size=2), []
    models = Models(RolloutEngine(Ranks()), cases.frozen(), cases.student(recipe))
    accelerator = SimpleNamespace(device="cpu", state=SimpleNamespace(deepspeed_plugin=SimpleNamespace(zero_stage=1)))
    monkeypatch.setattr(main_job.distributed, "start", lambda *_, **__: accelerator)
    monkeypatch.setattr(main_job.distributed, "Ranks", lambda *asked: given.append(asked) or Ranks())
    monkeypatch.setattr(main_job.distributed, "Trainer", lambda *_: MainTrainer(recipe, set()))
    for name in ("start_trackers", "announce", "evaluate_teacher", "check_self_distillation"):
        monkeypatch.setattr(main_job, name, lambda *_: None)
    monkeypatch.setattr(main_job, "source_for", lambda *_: lambda settings, step: [])
    monkeypatch.setattr(main_job, "load_models", lambda *_, **__: models)
    checked = parts_of(recipe, tmp_path / "other", lambda *_: []).checked
    parts = main_job.build(checked, RunFolder(tmp_path / "run"), resume=False)
    assert given == [("cpu", 2)] and models.engine.weights_of == parts.run.trainer.student.weights


@pytest.mark.parametrize(
    ("first", "later", "warned"),
    [(0.01, 0.09, []), (0.01, 0.11, [2]), (0.08, 0.22, []), (0.08, 0.26, [2]), (0.2, 0.31, [2]), (1.5, 1.5, [1, 2])],
)
def test_a_gap_thrice_the_first_and_above_a_tenth_of_a_nat_warns(first, later, warned: list[int], tmp_path):
    """And any above 0.3: an engine that is wrong from the first step would set the measure."""
    gaps = [first, later]
    parts = parts_of(cases.recipe(), tmp_path / "run", lambda _, step: drifted(gaps[step]))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        measured = [one_step(parts, index).metrics["gap"] for index in (0, 1)]
    assert measured == pytest.approx(gaps, rel=1e-5)
    words = [str(w.message).split(" nats")[0] for w in said]
    assert words == [f"step {n}: the engine's log-probs are {gaps[n - 1]:.3f}" for n in warned]


@pytest.mark.parametrize("interrupted", [False, True])
def test_losing_steps_in_a_row_ends_the_run_and_a_resumed_run_goes_on_counting(interrupted, tmp_path, monkeypatch):
    """Steps 2, 4, 5 and 6 of 9 are lost: step 3 starts the count again; a break after step 5 does not."""
    recipe = cases.recipe(steps=9, stop_after_skips=3, checkpoints={"every": 1, "keep": 1})
    breaks = iter([interrupted, False])

    def source(settings, step: int) -> list[Rollout]:
        if step == 5 and next(breaks):
            raise KeyboardInterrupt
        return cases.rollouts(step)

    def build(checked, folder, *, resume: bool) -> Parts:
        return parts_of(recipe, folder.path, source, lost={2, 4, 5, 6})

    monkeypatch.setattr(main_job, "build", build)
    folder = RunFolder(tmp_path / "run")
    checked = parts_of(recipe, folder.path, source).checked
    if interrupted:
        with pytest.raises(KeyboardInterrupt):
            train(checked, folder, resume=False)
        assert folder.skips() == 2
    with pytest.raises(TrainingError, match=r"3 steps in a row were not finite or had no .* the last is step 6"):
        train(checked, folder, resume=interrupted)
    assert [line["skipped"] for line in folder.metrics()] == [0, 1, 0, 1, 1, 1]
    assert [line["grad_norm"] for line in folder.metrics()] == [1, None, 1, None, None, None]
    assert read_rollouts(folder.path / "nonfinite.jsonl") == cases.rollouts(5)
    assert not (folder.path / "summary.json").exists()


def test_a_hub_that_fails_when_the_run_ends_leaves_it_whole_and_says_what_goes_on(tmp_path, monkeypatch):
    parts = parts_of(cases.recipe(hub={"repo": "ann/x", "private": False}), tmp_path / "run", lambda *_: [])

    def push(*_) -> None:
        raise HubError("can't log in")

    monkeypatch.setattr(main_job, "push", push)
    with pytest.raises(
        UploadError, match=r"whole, and `opd push \S+/run ann/x --public` goes on: can't log in"
    ) as said:
        main_job.upload(parts)
    assert said.value.exit_code == 1


def test_a_step_takes_its_ramps_values_and_logs_them(tmp_path: Path):
    seen = []

    def source(settings, step: int) -> list[Rollout]:
        seen.append(settings.temperature)
        return cases.rollouts()

    keep = {"start": 0.2, "end": 0.6}
    recipe = cases.recipe(
        loss=[{"select": {"type": "random", "keep": keep}, "objective": {"type": "reverse_kl"}}],
        rollout={"type": "transformers", "max_new_tokens": 20, "temperature": {"start": 1.0, "end": 0.5}},
        optimizer={"lr": 1e-3, "schedule": "linear"},
        steps=3,
    )
    parts = parts_of(recipe, tmp_path / "run", source)
    for index in range(3):
        one_step(parts, index)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["schedule/loss.0.select.keep"] for line in lines] == pytest.approx([0.2, 0.4, 0.6])
    assert [line["schedule/rollout.temperature"] for line in lines] == pytest.approx([1.0, 0.75, 0.5]) == seen
    files = [step_file(tmp_path / "run" / "rollouts", index) for index in range(3)]
    assert [recorded_temperature(file) for file in files] == seen, "a recorded source can be checked against it"
    assert [line["lr"] for line in lines] == pytest.approx([1e-3, 2e-3 / 3, 1e-3 / 3])
    assert [key for key in lines[0] if not any(fnmatch(key, pattern) for pattern in METRICS)] == []
    counts = [[max(1, int(k * r.length)) if r.length else 0 for r in cases.rollouts()] for k in (0.2, 0.4, 0.6)]
    assert [line["term0/tokens"] for line in lines] == [sum(c) for c in counts]


def test_a_run_goes_on_alone_and_with_the_prompts_that_it_began_with(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(main_job, "SHARED_WITHIN", 1)
    checked = parts_of(cases.recipe(), tmp_path / "other", lambda *_: []).checked
    first, again = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "run")
    open_folder(first, checked, Ranks(), resume=False)
    with pytest.raises(RunError, match="another process trains in"):
        open_folder(again, checked, Ranks(), resume=True)
    first.lock.close()
    more = replace(checked, prompts=PromptSet([], 0, 0, digest="others"))
    with pytest.raises(RunError, match=r"the prompts are not those that .* began with"):
        open_folder(again, more, Ranks(), resume=True)
    again.lock.close()
    open_folder(RunFolder(tmp_path / "run"), checked, Ranks(), resume=True)


def test_a_folder_that_another_machine_does_not_see_is_no_shared_disk(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(main_job, "SHARED_WITHIN", 1)
    checked = parts_of(cases.recipe(), tmp_path / "other", lambda *_: []).checked
    monkeypatch.setattr(RunFolder, "create", lambda *_, **__: None)
    with pytest.raises(RunError, match="put --runs on a shared disk"):
        open_folder(RunFolder(tmp_path / "run"), checked, Ranks(), resume=False)


def test_only_an_objective_that_reads_a_middle_layer_asks_for_one():
    assert cases.recipe("all").layer_share is None
    assert cases.recipe(loss=[{"objective": {"type": "uskd", "layer": 0.3}}]).layer_share == 0.3


@pytest.mark.parametrize(
    ("every", "steps", "scored"), [(0, 4, []), (2, 6, [2, 4]), (2, 5, [2, 4]), (5, 5, []), (1, 3, [1, 2])]
)
def test_the_last_step_is_scored_once(every, steps, scored):
    recipe = cases.recipe(evaluate={"task": "arithmetic", "every": every}, steps=steps)
    assert [done for done in range(1, steps + 1) if scores_at(recipe, done)] == scored
    assert not scores_at(cases.recipe(steps=steps), steps)
