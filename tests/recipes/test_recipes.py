"""Every shipped recipe loads, means what its stored resolved form says, and is what its name and folder promise.

UPDATE_RECIPES=1 python -m pytest tests/recipes      stores the present meaning: a changed default is a reviewable diff
"""

import os
import re
from pathlib import Path

import pytest

from opd.recipe_text import dump_recipe, load_recipe
from tests.recipes.families import RECIPES, ROOT, Arm, families

RESOLVED = Path(__file__).parent / "resolved"
PAPERS = ("tip", "tsdkd", "d3s")
"""Theirs are for eight GPUs, but for what borrows the quickstart's pair."""
MAY_DIFFER = {"loss", "name", "published", "reproduced_elsewhere", "measured"}
"""What an arm may change of its pair's baseline: what it pays, and what is known of it."""
MAY_DIFFER_TOO = {
    ("d3s", None): {"advantage", "rollout_selection"},
    ("controls", "semi-offline"): {"rollout"},
}


def stored(recipe: Path) -> Path:
    return RESOLVED / f"{'-'.join(recipe.relative_to(ROOT / 'recipes').with_suffix('').parts)}.yaml"


def differing(arm: Arm, other: Arm) -> set[str]:
    ours, theirs = arm.recipe.model_dump(), other.recipe.model_dump()
    return {key for key in ours if ours[key] != theirs[key]}


def arm_of(name: str) -> Arm:
    return Arm.of(ROOT / "recipes" / f"{name}.yaml")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: stored(path).stem)
def test_a_recipe_means_what_its_resolved_form_says(path: Path):
    resolved = dump_recipe(load_recipe(path))
    if os.environ.get("UPDATE_RECIPES") == "1":
        RESOLVED.mkdir(exist_ok=True)
        stored(path).write_text(resolved)
    assert stored(path).is_file(), f"no resolved form of {path.name}; run with UPDATE_RECIPES=1 and commit it"
    assert resolved == stored(path).read_text(), "the recipe's meaning changed; run with UPDATE_RECIPES=1 if it should"
    assert load_recipe(stored(path)) == load_recipe(path)


def test_no_resolved_form_is_left_over():
    if os.environ.get("UPDATE_RECIPES") == "1":
        for path in set(RESOLVED.glob("*.yaml")) - {stored(path) for path in RECIPES}:
            path.unlink()
    assert RECIPES and set(RESOLVED.glob("*.yaml")) == {stored(path) for path in RECIPES}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: stored(path).stem)
def test_a_recipe_opens_with_a_comment_that_says_how_to_run_it(path: Path):
    first, second, *_ = path.read_text().splitlines()
    assert re.match(r"# \S", first)
    recipe, command = Arm.of(path).recipe, f"opd train {path.relative_to(ROOT)}"
    if path.parent.name in PAPERS and not recipe.student.model.startswith("."):
        stage = "zero3" if recipe.teacher.shard == "zero3" else "zero2"
        assert second == f"# accelerate launch --config_file launch/accelerate/gpu-8-{stage}.yaml -m {command}"
    elif path.parent.name in (*PAPERS, "controls"):
        assert first.endswith(f". {command}")


def test_every_arm_of_a_pair_differs_from_its_baseline_in_the_loss_alone():
    compared = 0
    for baseline, *arms in families():
        assert baseline.is_baseline or not arms, f"{baseline.path} and its like have no arm with every token"
        for arm in arms:
            too = MAY_DIFFER_TOO.get((arm.folder, arm.name), MAY_DIFFER_TOO.get((arm.folder, None), set()))
            changed = differing(arm, baseline)
            assert changed <= MAY_DIFFER | too, f"{arm.path.name} also changes {sorted(changed - MAY_DIFFER - too)}"
            assert changed - {"published", "reproduced_elsewhere"}, f"{arm.path.name} is its baseline"
            compared += 1
    assert compared > 25


@pytest.mark.parametrize(
    ("ours", "theirs", "too"),
    [
        ("tip/quickstart-soft-or-50", "quickstart/quickstart", set()),
        ("tsdkd/quickstart", "quickstart/quickstart", set()),
        ("d3s/quickstart", "quickstart/quickstart", {"advantage", "rollout_selection", "rollout", "prompts_per_step"}),
        ("controls/quickstart-full", "quickstart/quickstart", set()),
        ("controls/qwen2.5-coder-1.5b-to-0.5b-full", "gsm8k/qwen2.5-coder-1.5b-to-0.5b", set()),
    ],
)
def test_what_borrows_a_pair_keeps_its_settings(ours: str, theirs: str, too: set[str]):
    assert differing(arm_of(ours), arm_of(theirs)) <= MAY_DIFFER | too


def test_d3s_on_the_quickstarts_pair_trains_on_as_many_rollouts_a_step():
    ours, theirs = (arm_of(name).recipe for name in ("d3s/quickstart", "quickstart/quickstart"))
    rollouts = [r.prompts_per_step * r.rollout.samples_per_prompt for r in (ours, theirs)]
    assert rollouts == [128, 128]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: stored(path).stem)
def test_a_number_in_an_arms_name_is_what_its_selector_keeps(path: Path):
    arm = Arm.of(path)
    if not (number := re.search(r"-(\d+)$", f"-{arm.name}")):
        return
    select, *others = (term.select for term in arm.recipe.loss)
    assert all(other == select for other in others)
    kept = select.tokens if select.type == "first_n" else 100 * select.keep
    assert kept == pytest.approx(int(number.group(1)))


def test_quoted_figures_are_scores_in_percent():
    quoted = [arm.recipe.published for family in families() for arm in family if arm.recipe.published]
    others = [arm.recipe.reproduced_elsewhere for family in families() for arm in family]
    assert len(quoted) >= 14
    for figures in [*quoted, *filter(None, others)]:
        scores = [*figures.scores.values(), *figures.start_scores.values(), *figures.teacher_scores.values()]
        assert scores and all(0 < score <= 100 for score in scores)


def test_tips_headline_is_quoted_as_published():
    published = arm_of("tip/qwen3-8b-to-4b-soft-or-50").recipe.published
    assert published.scores == {"math500": 79.1, "aime24": 25.7, "aime25": 21.9}


def test_tsdkd_is_three_terms_with_the_papers_weights():
    pairs = ("qwen2.5-14b-to-1.5b-tsdkd", "qwen2.5-7b-to-0.5b-tsdkd", "quickstart")
    losses = [arm_of(f"tsdkd/{name}").recipe.loss for name in pairs]
    assert losses[0] == losses[1] == losses[2]
    said = [(term.select.type, term.objective.type, term.weight) for term in losses[0]]
    assert said == [
        ("opener", "plackett_luce", 0.1),
        ("soft_gate", "jsd", 1.0),
        ("entropy", "entropy", 1.0),
    ]
