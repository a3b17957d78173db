"""The comparison: what is run and what is not, and what is written."""

import json
import zlib
from pathlib import Path

import pytest

from eval.comparison.arms import ARMS, arms_named
from eval.comparison.report import report
from eval.comparison.results import outcome, results_of
from eval.comparison.runs import by_command, jobs_of, run_all, teacher_score
from eval.comparison.table import caption, table
from eval.results import read_result
from eval.runner import Evaluation
from opd.errors import RecipeError, RunError, TrainingError
from opd.models import load_tokenizer
from opd.recipe_text import load_recipe
from opd.selection import SELECTORS

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "recipes/comparison/comparison.yaml"
TEACHER = {"score": 0.99, "stderr": 0.005, "n": 400}
TERM = "{select: {type: %s}, objective: {type: reverse_kl}}"
FEW = [arm for arm in ARMS if arm.name in ("full", "random-20", "soft_or-20", "d3s-20")]


class FakeOpd:
    """Leaves in the run folder what `opd train` would; fails where the name says so."""

    def __init__(self, fails: str = "") -> None:
        self.ran: list[str] = []
        self.fails = fails

    def __call__(self, command: list[str], log: Path) -> None:
        options = dict(word.split("=", 1) for word in command if "=" in word)
        name, runs = options["name"], Path(command[command.index("--runs") + 1])
        self.ran.append(name)
        folder = runs / name
        folder.mkdir(parents=True)
        (folder / "left-behind").touch()
        if name == self.fails:
            raise TrainingError(f"{name} failed")
        recipe = load_recipe(command[command.index("train") + 1], [f"{k}={v}" for k, v in options.items()])
        gain = 0.1 + zlib.crc32(name.encode()) % 1000 / 10_000
        start = {"score": 0.7, "stderr": 0.02, "n": 400, "fixed_text": {"reverse_kl": 0.3}}
        end = {"score": 0.7 + gain, "stderr": 0.02, "n": 400, "fixed_text": {"reverse_kl": 0.3 - gain}}
        settled = recipe.model_dump(mode="json")
        settled["student"]["attention"] = settled["teacher"]["attention"] = "sdpa"
        summary = {
            "recipe": settled,
            "wall_seconds": 30.0,
            "commit": "abc",
            "machine": "a machine",
            "scores": {"skills": {"student_start": start, "student_end": end}},
        }
        (folder / "summary.json").write_text(json.dumps(summary))
        lines = [{"step": i, "term0/tokens": 100.0, "term0/kept": 0.5} for i in range(3)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def jobs(runs: Path, seeds: int = 2, overrides: tuple[str, ...] = ()):
    return jobs_of(FEW, RECIPE, list(overrides), seeds=seeds, runs=runs)


def test_every_arm_is_a_recipe():
    base = load_recipe(RECIPE).model_dump()
    for arm in ARMS:
        recipe = load_recipe(RECIPE, arm.overrides(3))
        ours = recipe.model_dump()
        changed = {key for key in ours if ours[key] != base[key]}
        assert changed <= {"loss", "seed", "name", *(word.partition("=")[0] for word in arm.also)}
        assert (recipe.seed, recipe.name) == (3, f"{arm.name}-3")
        assert recipe.loss[0].select.type == arm.select["type"]
        if "keep" in arm.select:
            assert recipe.loss[0].select.keep == int(arm.name.partition("-")[2]) / 100
    assert {arm.select["type"] for arm in ARMS} <= set(SELECTORS)
    assert len({arm.name for arm in ARMS}) == len(ARMS)


def test_arms_are_chosen_by_name():
    assert arms_named(None) == list(ARMS)
    assert [arm.name for arm in arms_named("soft_or-20,full")] == ["full", "soft_or-20"]
    with pytest.raises(RecipeError, match="no arm hard_or-20; choose of full, random-20"):
        arms_named("full,hard_or-20")


def test_the_comparison_is_of_five_seeds_and_one_of_some_arms():
    planned = jobs_of(list(ARMS), RECIPE, [], seeds=5, runs=Path("runs/comparison"))
    wanted = sum(1 if arm.once else 5 for arm in ARMS)
    assert len(planned) == wanted == len({job.folder for job in planned})
    assert {job.folder.parent for job in planned} == {Path("runs/comparison")}
    assert [job.recipe.seed for job in planned] == sorted(job.recipe.seed for job in planned), "seed by seed"


def test_a_finished_run_is_not_repeated_and_an_interrupted_one_starts_again(tmp_path):
    planned = jobs(tmp_path)
    first = FakeOpd(fails="soft_or-20-0")
    with pytest.raises(TrainingError, match="soft_or-20-0 failed"):
        run_all(planned, first, at_once=1)
    assert first.ran[-1] == "soft_or-20-0", "nothing starts after a failure"
    other = tmp_path / "someone-elses"
    other.mkdir()
    (tmp_path / "soft_or-20-0" / "stale").touch()
    second = FakeOpd()
    run_all(planned, second, at_once=1)
    assert second.ran == [j.folder.name for j in planned if j.folder.name not in first.ran[:-1]]
    assert not (tmp_path / "soft_or-20-0" / "stale").exists() and other.is_dir()
    third = FakeOpd()
    run_all(planned, third, at_once=2)
    assert third.ran == []


def test_a_run_of_another_recipe_is_named(tmp_path):
    run_all(jobs(tmp_path), FakeOpd(), at_once=1)
    with pytest.raises(RunError, match="made by another recipe"):
        run_all(jobs(tmp_path, overrides=("steps=7",)), FakeOpd(), at_once=1)


def test_a_command_that_fails_says_where_it_said_why(tmp_path):
    with pytest.raises(TrainingError, match=r"see .*x\.log: gone"):
        by_command(["sh", "-c", "echo gone; exit 3"], tmp_path / "deep" / "x.log")
    by_command(["sh", "-c", "echo $OMP_NUM_THREADS"], tmp_path / "y.log")
    assert (tmp_path / "y.log").read_text() == "1\n"


def test_the_teacher_is_scored_on_the_runs_problems(tmp_path, toy):
    evaluate = "evaluate={task: arithmetic, problems: 3, samples: 2, temperature: 0.5, max_new_tokens: 7}"
    recipe = load_recipe(RECIPE, [f"teacher.model={toy / 'teacher'}", evaluate])
    score = teacher_score(recipe, tmp_path)
    assert score["n"] == 3 and 0 <= score["score"] <= 1 and score["stderr"] >= 0
    (folder,) = [path.parent for path in (tmp_path / "teacher").rglob("result.json")]
    runs = Evaluation(recipe.evaluate, load_tokenizer(recipe.teacher.model), recipe.prompts).asked.identity()
    assert read_result(folder).identity.items() >= runs.items()


def test_an_arm_selects_for_every_term(tmp_path):
    two = f"loss=[{TERM % 'all'}, {TERM % 'all'}]"
    for job, arm in zip(jobs(tmp_path, seeds=1, overrides=(two,)), FEW, strict=True):
        assert [term.select.type for term in job.recipe.loss] == [arm.select["type"]] * 2


@pytest.mark.parametrize(
    ("seeds", "override", "said"),
    [
        (0, "seed=0", "--seeds 0: there is nothing"),
        (1, "evaluate=null", "no score"),
        (1, "evaluate.fixed_text=0", "fixed"),
        (1, "loss=[{}, {}]".format(*(TERM % select for select in ("all", "first_n, tokens: 2"))), "several selectors"),
        (1, "prompts.chat_template_kwargs={enable_thinking: false}", "chat_template_kwargs"),
        (1, "teacher.revision=main", "teacher.revision"),
    ],
)
def test_what_would_leave_nothing_to_compare_is_said_before_it_runs(tmp_path, seeds, override, said):
    with pytest.raises(RecipeError, match=said):
        jobs(tmp_path, seeds=seeds, overrides=(override,))


def test_an_outcome_sums_the_tokens_that_were_trained_on(tmp_path):
    run_all(jobs(tmp_path, seeds=1), FakeOpd(), at_once=1)
    found = outcome(tmp_path / "full-0")
    assert (found["tokens"], found["kept"]) == (300.0, 0.5)
    assert found["start"]["score"] == 0.7 and 0.8 <= found["score"] < 0.9
    with (tmp_path / "full-0" / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 3, "term0/tokens": 0.0, "term0/kept": None}) + "\n")
    assert outcome(tmp_path / "full-0")["kept"] == 0.5, "a step without a token retains no share of them"


def test_the_report_has_the_untrained_student_the_teacher_and_every_arm(tmp_path):
    planned = jobs(tmp_path / "runs", seeds=3)
    run_all(planned, FakeOpd(), at_once=1)
    text = report(planned, TEACHER, tmp_path / "to")
    rows = [line.split(" | ")[0].strip("| ") for line in text.splitlines() if line.startswith("|")]
    assert rows[2:] == ["student, untrained", *(arm.name for arm in FEW), "teacher"]
    assert len({line.count("|") for line in text.splitlines() if line.startswith("|")}) == 1
    results = json.loads((tmp_path / "to" / "results.json").read_text())
    assert (
        results["arms"]["d3s-20"]["seeds"] == [0] and "p" not in results["arms"]["d3s-20"]["against"]["full"]["score"]
    )
    against = results["arms"]["soft_or-20"]["against"]
    assert set(against) == {"full", "random"} and results["tests"] == 6
    assert against["full"]["score"]["p_holm"] >= against["full"]["score"]["p"]
    assert "full" not in results["arms"]["full"]["against"] and "random" not in results["arms"]["random-20"]["against"]
    assert (tmp_path / "to" / "comparison.png").stat().st_size > 10_000
    assert (tmp_path / "to" / "table.md").read_text() == text
    assert "points of exact match" in caption(results) and "± " in table(results)


def test_an_arm_without_its_control_is_compared_with_full_alone():
    start = {"score": 0.7, "stderr": 0.02, "reverse_kl": 0.3}
    one = {"tokens": 10.0, "kept": 1.0, "score": 0.8, "reverse_kl": 0.2, "seconds": 1.0, "start": start}
    results = results_of({"full": {0: one}, "q3-20": {0: one | {"score": 0.9}}}, TEACHER)
    assert results["arms"]["q3-20"]["against"]["full"]["score"] == {"difference": pytest.approx(0.1)}
    assert set(results["arms"]["q3-20"]["against"]) == {"full"} and "+10.0" in table(results)


def test_the_committed_table_follows_from_the_committed_runs():
    results = json.loads((RECIPE.parent / "results.json").read_text())
    runs = {arm: {int(seed): o for seed, o in by_seed.items()} for arm, by_seed in results["runs"].items()}
    again = results_of(runs, results["teacher"])
    assert f"{table(again)}\n{caption(again)}\n" == (RECIPE.parent / "table.md").read_text()
