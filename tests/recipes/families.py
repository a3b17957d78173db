"""Recipe files by paper and pair, and the README's table of them: one row a pair, its arms in it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from opd.config import Recipe
from opd.figures import MeasuredFigures, ReportedFigures
from opd.recipe_text import load_recipe

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
NAME = re.compile(r"(?P<pair>quickstart|.+-to-(?:[\d.]+-)?[\d.]+b)(?:-(?P<arm>.+))?")
BASELINES = ("full", "gkd")
"""The arm that trains on every token, to which the others of its pair are compared."""


@dataclass(frozen=True)
class Arm:
    """One recipe file: `tip/qwen3-8b-to-4b-soft-or-50.yaml` is folder tip, pair qwen3-8b-to-4b, arm soft-or-50."""

    path: Path
    folder: str
    pair: str
    name: str | None
    recipe: Recipe

    @property
    def is_baseline(self) -> bool:
        return self.name in BASELINES

    @classmethod
    def of(cls, path: Path) -> Arm:
        pair, name = named.groups() if (named := NAME.fullmatch(path.stem)) else (path.stem, None)
        return cls(path, path.parent.name, pair, name, load_recipe(path))


def families() -> list[list[Arm]]:
    """The arms of each folder and pair, the baseline first."""
    arms = sorted(map(Arm.of, RECIPES), key=lambda a: (a.folder, a.pair, not a.is_baseline, a.name or ""))
    return [list(family) for _, family in groupby(arms, key=lambda a: (a.folder, a.pair))]


def table() -> str:
    """The README's rows: recipe, what it trains, published, measured."""
    return "".join(f"| {' | '.join(row(family))} |\n" for family in families())


def row(family: list[Arm]) -> list[str]:
    """The four cells of one pair."""
    first = family[0]
    stem = first.path.stem if len(family) == 1 else f"{first.pair}-*"
    names = ", ".join(arm.name for arm in family if arm.name)
    cells = [f"`recipes/{first.folder}/{stem}.yaml`", what(first.recipe) + (f": {names}" if names else "")]
    return [*cells, figures(family, "published"), figures(family, "measured")]


def what(recipe: Recipe) -> str:
    """Student ← teacher on data."""
    if recipe.student.model.startswith("."):
        return f"the toy pair of `recipes/{Path(recipe.student.model).parts[1]}/make_models.py`"
    student, teacher, data = (
        name.rpartition("/")[2] for name in (recipe.student.model, recipe.teacher.model, recipe.prompts.dataset)
    )
    return f"{student} ← {teacher}, {data}"


def figures(family: list[Arm], field: str) -> str:
    """`gsm8k/math: gkd 57.9/18.1, gate –/18.2`, or a dash where no arm has a figure."""
    reported = {arm.name: getattr(arm.recipe, field) for arm in family}
    found = {name: record for name, record in reported.items() if record and record.scores}
    tasks = list(dict.fromkeys(task for record in found.values() for task in record.scores))
    values = {name: "/".join(number(record, task) for task in tasks) for name, record in found.items()}
    listed = ", ".join(f"{name or ''} {value}".strip() for name, value in values.items())
    return f"{'/'.join(tasks)}: {listed}" if found else "–"


def number(record: ReportedFigures | MeasuredFigures, task: str) -> str:
    """`79.1`, `91.8 ± 1.4` or a dash."""
    if task not in record.scores:
        return "–"
    error = f" ± {record.stderr[task]:.1f}" if isinstance(record, MeasuredFigures) else ""
    return f"{record.scores[task]:.1f}{error}"
