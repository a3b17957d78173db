"""Every shipped recipe loads, and means what its stored resolved form says.

UPDATE_RECIPES=1 python -m pytest tests/recipes      stores the present meaning: a changed default is a reviewable diff
"""

import os
from pathlib import Path

import pytest

from opd.recipe_text import dump_recipe, load_recipe

ROOT = Path(__file__).resolve().parents[2]
RESOLVED = Path(__file__).parent / "resolved"
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))


def stored(recipe: Path) -> Path:
    return RESOLVED / f"{'-'.join(recipe.relative_to(ROOT / 'recipes').with_suffix('').parts)}.yaml"


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
