"""The README and opd's docstring speak of the files that are there."""

import os
import re
from pathlib import Path

import opd
from opd.metrics import METRICS
from opd.recipe_text import load_recipe
from opd.run import differences
from tests.recipes.families import table as recipe_table

ROOT = Path(__file__).parent.parent


def readme() -> str:
    return (ROOT / "README.md").read_text()


def test_opds_docstring_lists_each_of_its_parts_once():
    listed = re.findall(r"^    (\S+?)/? {2,}\S", opd.__doc__, re.M)
    there = {p.name for p in (ROOT / "opd").iterdir() if not p.name.startswith("__")}
    assert sorted(listed) == sorted(there)


def test_the_readmes_tree_is_opds_docstring_and_names_every_top_level_part():
    tree = re.search(r"## The tree\n\n```\n(.*?)```", readme(), re.S).group(1)
    lines = [line.strip() for line in tree.splitlines()]
    for line in opd.__doc__.splitlines():
        if line.startswith("    "):
            assert line.strip() in lines
    for path in ROOT.iterdir():
        if path.is_dir() and not path.name.startswith((".", "__")) and not path.name.endswith("egg-info"):
            assert path.name in ("runs", "results") or any(line.startswith(f"{path.name}/") for line in lines), (
                path.name
            )


def table_below(header: str, rows: str) -> str:
    """The rows that the README has below a header; with UPDATE_README=1 these rows, written there first."""
    line = "|" + "---|" * (header.count("|") - 1)
    pattern = re.compile(rf"(?<={re.escape(header)}\n{re.escape(line)}\n)(\|.*\n)+")
    if os.environ.get("UPDATE_README") == "1":
        (ROOT / "README.md").write_text(pattern.sub(lambda _: rows, readme()))
    return pattern.search(readme()).group()


def test_the_readmes_metrics_are_those_that_exist():
    """UPDATE_README=1 rewrites the table."""
    rows = "".join(f"| `{name}` | {unit} | {meaning} |\n" for name, (unit, meaning) in METRICS.items())
    assert table_below("| name | unit | meaning |", rows) == rows


def test_the_readmes_recipes_are_those_that_exist():
    """UPDATE_README=1 rewrites the table."""
    rows = recipe_table()
    assert table_below("| recipe | what it trains | published | measured |", rows) == rows


def test_the_recipe_in_the_readme_is_the_file_that_it_names(tmp_path):
    named, text = re.search(r"This is `(recipes/\S+\.yaml)`.*?```yaml\n(.*?)```", readme(), re.S).groups()
    (tmp_path / "recipe.yaml").write_text(text)
    shown, file = (load_recipe(path).model_dump() for path in (tmp_path / "recipe.yaml", ROOT / named))
    assert {change.split(":")[0] for change in differences(shown, file)} == {"published", "reproduced_elsewhere"}
