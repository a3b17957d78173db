"""The run folder: what it refuses, what it forgets on resume, and what a kill can't break."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest

import opd.run
from opd.config import Recipe
from opd.errors import RunError
from opd.recipe_text import load_recipe, parse_recipe
from opd.run import RunFolder, checkpoints_in, differences, environment, open_run, read_lines, summary_of, write_atomic


@pytest.fixture
def recipe() -> Recipe:
    return parse_recipe(
        {
            "name": "a",
            "student": {"model": "s"},
            "teacher": {"model": "t"},
            "prompts": {"path": "p.jsonl"},
            "loss": [{"select": {"type": "soft_or"}, "objective": {"type": "reverse_kl"}}],
        }
    )


@pytest.fixture
def folder(tmp_path: Path, recipe: Recipe) -> RunFolder:
    folder = RunFolder(tmp_path / "runs/a")
    folder.create(recipe, data="")
    return folder


def test_differences_name_each_leaf():
    before = {"a": 1, "b": {"c": 2, "d": [1, {"e": 3}]}, "same": (1, 2)}
    after = {"a": 1, "b": {"c": 5, "d": [1, {"e": 4}]}, "same": (1, 2), "new": None, "other": 7}
    assert differences(before, after) == ["b.c: 2 → 5", "b.d.1.e: 3 → 4", "other: None → 7"]
    assert differences([1], [1, 2], "x") == ["x: [1] → [1, 2]"]
    assert differences({"a": {"b": 1}}, {"a": None}) == ["a: {'b': 1} → None"]
    assert differences(before, before) == []


def test_a_new_run_is_only_named_not_made(tmp_path, recipe):
    runs = tmp_path / "runs"
    mine = recipe.model_copy(update={"name": "mine"})
    named = open_run(mine, recipe_path="recipes/x/tip.yaml", runs=runs, resume=False)
    timed = open_run(
        recipe.model_copy(update={"name": None}), recipe_path="recipes/x/tip.yaml", runs=runs, resume=False
    )
    assert named.path == runs / "mine"
    assert re.fullmatch(r"tip-\d{8}-\d{6}", timed.path.name)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_run_is_refused(folder, recipe):
    with pytest.raises(RunError, match="exists"):
        open_run(recipe, recipe_path="r.yaml", runs=folder.path.parent, resume=False)
    with pytest.raises(FileExistsError):
        folder.create(recipe, data="")


def test_a_run_resumes_with_the_same_recipe_only(folder, recipe):
    def resume(wanted: Recipe) -> RunFolder:
        return open_run(wanted, recipe_path="r.yaml", runs=folder.path.parent, resume=True)

    (folder.checkpoints / "step-000002").mkdir(parents=True)
    assert resume(recipe).path == folder.path and resume(recipe).can_resume
    other = recipe.model_copy(update={"steps": 7})
    with pytest.raises(RunError, match="steps: 200 → 7"):
        resume(other)


def test_a_resumed_run_may_change_what_changes_no_result(folder, recipe):
    (folder.checkpoints / "step-000002").mkdir(parents=True)
    for key, value in {
        "token_budget": 32768,
        "tile_mib": 75,
        "student": recipe.student.model_dump() | {"gradient_checkpointing": True},
        "teacher": recipe.teacher.model_dump() | {"offload": True},
        "rollout": recipe.rollout.model_dump() | {"kv_cache_mib": 64, "gpu_memory_share": 0.2, "sleep_level": 2},
        "checkpoints": {"every": 5, "keep": 2},
        "metrics": {"trackers": ["tensorboard"], "rollouts": 1},
        "hub": {"repo": "me/mine"},
    }.items():
        changed = parse_recipe(recipe.model_dump() | {key: value})
        assert open_run(changed, recipe_path="r.yaml", runs=folder.path.parent, resume=True).can_resume, key
    awake = parse_recipe(recipe.model_dump() | {"rollout": recipe.rollout.model_dump() | {"sleep": False}})
    assert open_run(awake, recipe_path="r.yaml", runs=folder.path.parent, resume=True).can_resume
    with pytest.raises(RunError, match="full_every: 10 → 5"):
        changed = parse_recipe(recipe.model_dump() | {"metrics": {"full_every": 5, "rollouts": 1}})
        open_run(changed, recipe_path="r.yaml", runs=folder.path.parent, resume=True)


def test_a_copied_folder_is_not_taken_for_the_run_that_it_was_copied_from(folder, recipe):
    (folder.checkpoints / "step-000002").mkdir(parents=True)
    folder.append_metrics({"step": 2})
    copy = RunFolder(shutil.copytree(folder.path, folder.path.with_name("copy")))

    def resume(name: str) -> RunFolder:
        wanted = recipe.model_copy(update={"name": name})
        return open_run(wanted, recipe_path=str(copy.path / "recipe.yaml"), runs=folder.path.parent, resume=True)

    with pytest.raises(RunError, match=r"another folder .* add name=copy"):
        resume("a")
    assert resume("copy").path == copy.path


def test_a_run_that_began_from_another_runs_recipe_resumes_and_so_does_one_behind_a_link(folder, recipe, tmp_path):
    folder.append_metrics({"step": 2})
    wanted = recipe.model_copy(update={"name": "b"})
    other = RunFolder(folder.path.with_name("b"))
    other.create(wanted, data="")
    (other.checkpoints / "step-000002").mkdir(parents=True)
    stored = str(folder.path / "recipe.yaml")
    assert open_run(wanted, recipe_path=stored, runs=folder.path.parent, resume=True).can_resume
    (tmp_path / "link").symlink_to(folder.path.parent)
    (folder.checkpoints / "step-000002").mkdir(parents=True)
    assert open_run(recipe, recipe_path=stored, runs=tmp_path / "link", resume=True).can_resume


def test_a_run_that_stopped_before_its_first_checkpoint_begins_anew_and_loses_nothing(folder, recipe, capsys):
    for i in (1, 2):
        folder.append_metrics({"step": i})
        again = open_run(recipe, recipe_path="r.yaml", runs=folder.path.parent, resume=True)
        assert not again.can_resume and folder.metrics() == [{"step": i}]
        again.create(recipe, data="")
        assert RunFolder(folder.path.parent / f"a.stopped-{i}").metrics() == [{"step": i}]
        assert f"a.stopped-{i}" in capsys.readouterr().out
        assert folder.metrics() == [] and load_recipe(folder.path / "recipe.yaml") == recipe


def test_a_folder_in_which_another_process_trains_is_held(folder, recipe):
    other = RunFolder(folder.path)
    assert not other.hold(), "its maker holds it"
    folder.lock.close()
    assert other.hold() and not folder.hold()
    assert RunFolder(folder.path.with_name("new")).hold(), "what is not there yet is free"


def test_only_checkpoints_that_have_their_name_count(folder, recipe):
    for name in ("step-000100", "step-1000000", "step-000200.bad", "step-best", ".step-000300.tmp"):
        (folder.checkpoints / name).mkdir(parents=True)
    assert [path.name for path in checkpoints_in(folder.checkpoints)] == ["step-000100", "step-1000000"]
    folder.reopen(recipe, data="")
    left = {path.name for path in folder.checkpoints.iterdir()}
    assert left == {"step-000100", "step-1000000", "step-000200.bad", "step-best"}, "a torn one is removed"


def test_a_run_knows_the_prompts_that_it_began_with(folder, recipe):
    assert not folder.has_other_data("") and folder.has_other_data("abc")
    folder.reopen(recipe, data="abc")
    assert folder.has_other_data("abc"), "it still does when it was resumed"
    folder.digest.unlink()
    assert not folder.has_other_data("abc"), "a run from before knows none"


def test_what_is_another_recipe_or_no_run_is_not_moved_aside(folder, recipe):
    other = recipe.model_copy(update={"steps": 7})
    with pytest.raises(RunError, match="steps: 200 → 7"):
        open_run(other, recipe_path="r.yaml", runs=folder.path.parent, resume=True)
    (folder.path / "recipe.yaml").unlink()
    with pytest.raises(RunError, match="no folder of a run"):
        open_run(recipe, recipe_path="r.yaml", runs=folder.path.parent, resume=True)


def test_auto_attention_is_the_stored_kernel_until_it_is_settled(folder, recipe):
    settled = recipe.model_copy(update={"student": recipe.student.model_copy(update={"attention": "sdpa"})})
    folder.reopen(settled, data="")
    folder.refuse_another(recipe)
    folder.refuse_another(settled)
    flash = recipe.model_copy(update={"student": recipe.student.model_copy(update={"attention": "flash_attention_2"})})
    with pytest.raises(RunError, match=r"student\.attention: 'sdpa' → 'flash_attention_2'"):
        folder.refuse_another(flash)


def test_the_stored_recipe_is_the_recipe(folder, recipe):
    assert load_recipe(folder.path / "recipe.yaml") == recipe


def test_metrics_are_cut_to_the_checkpoint(folder):
    for step in range(1, 6):
        folder.append_metrics({"step": step, "loss": 1 / step})
    with (folder.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    assert [line["step"] for line in folder.metrics()] == [1, 2, 3, 4, 5], "a torn last line is left out"
    folder.cut_to(3)
    lines = (folder.path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"step": n, "loss": 1 / n} for n in (1, 2, 3)]
    folder.append_metrics({"step": 4, "loss": 0.5})
    assert folder.metrics()[-1] == {"step": 4, "loss": 0.5}


def test_cutting_forgets_rollouts_beyond_the_checkpoint_too(folder):
    folder.rollouts.mkdir()
    for step in (1, 2, 3):
        (folder.rollouts / f"step-{step:06d}.jsonl").write_text("")
    folder.cut_to(2)
    assert sorted(p.name for p in folder.rollouts.iterdir()) == ["step-000001.jsonl", "step-000002.jsonl"]


def test_cutting_forgets_scores_of_steps_that_are_trained_again(folder):
    for who, steps in {"teacher": None, "student_start": 0, "step_2": 2, "step_4": 4}.items():
        folder.add_score("arithmetic", who, {"score": 0.5} | ({} if steps is None else {"steps": steps}))
    folder.cut_to(3)
    assert list(folder.scores()["arithmetic"]) == ["teacher", "student_start", "step_2"]


def test_what_is_not_a_number_is_null_on_disk(folder):
    folder.append_metrics({"step": 1, "grad_norm": float("nan")})
    assert folder.first_metrics() == {"step": 1, "grad_norm": None}


def test_lines_of_no_file_are_none(tmp_path):
    assert read_lines(tmp_path / "none.jsonl") == []


def test_a_score_is_kept_once_measured(folder):
    assert folder.scores() == {}
    folder.add_score("gsm8k", "teacher", {"score": 0.5, "n": 4})
    folder.add_score("gsm8k", "student_start", {"score": 0.25})
    assert folder.scores() == {"gsm8k": {"teacher": {"score": 0.5, "n": 4}, "student_start": {"score": 0.25}}}


def test_a_write_that_is_killed_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "summary.json"
    write_atomic(path, "old")
    write_half = Path.write_text

    def killed(self: Path, text: str, *args, **kwargs) -> None:
        write_half(self, text[:1])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", killed)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    monkeypatch.undo()
    write_atomic(path, "new")
    assert path.read_text() == "new" and [p.name for p in tmp_path.iterdir()] == ["summary.json"]


def test_a_run_keeps_the_command_that_began_it_and_where_others_went_on(recipe, tmp_path, monkeypatch):
    folder = RunFolder(tmp_path / "a")
    folder.create(recipe, data="")
    for steps, words in ((0, ["train", "r.yaml"]), (20, ["train", "runs/a/recipe.yaml", "--resume"])):
        monkeypatch.setattr(sys, "argv", ["opd", *words])
        folder.note_process(steps)
    found = folder.environment()
    assert found["command"] == "opd train r.yaml" and "from_step" not in found
    (again,) = found["resumed"]
    assert (again["from_step"], again["command"]) == (20, "opd train runs/a/recipe.yaml --resume")
    (folder.path / "processes.jsonl").write_text((folder.path / "processes.jsonl").read_text().splitlines()[1] + "\n")
    assert folder.environment()["resumed"] == [again], "of a run from before there was such a file"


def test_the_environment_says_what_a_figure_must_carry(monkeypatch):
    monkeypatch.setattr("sys.argv", ["opd", "train", "a b.yaml"])
    monkeypatch.setattr(opd.run, "PACKAGES", ("torch", "no-such-package"))
    found = environment("pytest", "no-such-peer")
    assert found["command"] == "opd train 'a b.yaml'"
    assert list(found["versions"]) == ["torch", "pytest"] and found["machine"] and found["python"].startswith("3.")


def test_skips_in_a_row_are_counted_over_a_resume(folder):
    assert folder.skips() == 0
    for step, skipped in enumerate([1.0, 0.0, 1.0, 1.0], start=1):
        folder.append_metrics({"step": step, "skipped": skipped})
    assert folder.skips() == 2


def test_a_summary_adds_up_the_phases_of_all_processes(folder, recipe):
    for step in (1, 2):
        folder.append_metrics({"step": step, "tokens": 30, "time/step": 2.0, "memory/step": float(step)})
    folder.append_metrics({"step": 3, "tokens": 40, "time/start": 5.0, "time/step": 1.0, "memory/step": 1.5})
    summary = summary_of(folder, recipe, {"ranks": 1}, {"time/export": 0.5, "memory/export": 1.0})
    assert summary["phases"] == {
        "memory/export": 1.0,
        "memory/step": 2.0,
        "time/export": 0.5,
        "time/start": 5.0,
        "time/step": 5.0,
    }
    assert (summary["wall_seconds"], summary["tokens_per_second"], summary["ranks"]) == (10.5, 20.0, 1)
