"""The seams of the architecture, walked over the source: who imports whom, what is documented, how wide a call is."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from opd.metrics import METRICS

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(p for folder in ("opd", "eval") for p in (ROOT / folder).rglob("*.py"))
TREES = {p: ast.parse(p.read_text()) for p in FILES}
MATHEMATICS = ("opd/head/", "opd/objectives/", "opd/selection/", "opd/advantages.py", "opd/packing.py", "opd/seeds.py")
ENGINES = ("transformers", "vllm", "deepspeed", "accelerate", "torch.distributed")
MACHINERY = (
    "models",
    "student",
    "distributed",
    "vocab_ranks",
    "ulysses",
    "rollout",
    "teacher",
    "parts",
    "stop",
    "evaluation",
    "train",
)
MACHINERY = tuple(f"opd.{part}" for part in MACHINERY)
Function = ast.FunctionDef | ast.AsyncFunctionDef


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def module(path: Path) -> str:
    return name(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")


MODULES = {module(p): p for p in FILES}


def imports(path: Path, *, top: bool = False) -> set[str]:
    """Full names of all that a file imports; only what runs when it is imported, with `top`."""
    nodes = TREES[path].body if top else ast.walk(TREES[path])
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name(path)}: write `from opd.x import …`, not a relative import"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def reached(path: Path) -> set[str]:
    """All that comes in when the file is imported: its own imports, and those of our modules below it."""
    found, seen, waiting = imports(path), {path}, [path]
    while waiting:
        for imported in imports(waiting.pop(), top=True):
            found.add(imported)
            if (inner := MODULES.get(imported)) and inner not in seen:
                seen.add(inner)
                waiting.append(inner)
    return found


def within(imported: str, packages: tuple[str, ...]) -> bool:
    return any(imported == package or imported.startswith(f"{package}.") for package in packages)


def test_opd_never_imports_eval_but_for_the_command_line():
    guilty = {name(p) for p in FILES if name(p).startswith("opd/") and any(within(i, ("eval",)) for i in imports(p))}
    assert guilty == {"opd/cli.py"}


@pytest.mark.parametrize("path", [p for p in FILES if name(p).startswith(MATHEMATICS)], ids=name)
def test_mathematics_imports_no_model_engine_or_process_group(path):
    assert {i for i in imports(path) if within(i, ENGINES + MACHINERY)} == set()
    assert {i for i in reached(path) if within(i, ENGINES + MACHINERY)} == set(), "through another module"


@pytest.mark.parametrize("path", [p for p in FILES if name(p).startswith("opd/rollout/")], ids=name)
def test_engines_never_import_mathematics(path):
    assert {i for i in reached(path) if within(i, ("opd.head", "opd.objectives", "opd.selection"))} == set()


def test_the_walk_finds_what_it_should():
    step = ROOT / "opd/step.py"
    assert "opd.distributed" in imports(step) and "torch" in imports(step)
    assert any(within(i, ("torch.distributed",)) for i in reached(step)), "through opd.distributed"


def public(tree: ast.AST) -> Iterator[ast.ClassDef | Function]:
    """Public classes and functions of a module."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef | Function) and not node.name.startswith("_"):
            yield node


@pytest.mark.parametrize("path", FILES, ids=name)
def test_everything_public_has_a_docstring(path):
    tree = TREES[path]
    assert ast.get_docstring(tree), f"{name(path)} says nothing about itself"
    assert [node.name for node in public(tree) if not ast.get_docstring(node)] == []


@pytest.mark.parametrize("path", [p for p in FILES if p.name == "__init__.py"], ids=name)
def test_a_packages_docstring_names_all_that_lives_there(path):
    there = {f"{p.name}/" if (p / "__init__.py").is_file() else p.name for p in path.parent.iterdir()}
    there = {part for part in there if part.endswith((".py", "/")) and not part.startswith("__")}
    said = set(re.findall(r"[\w.]+(?:\.py|/)", ast.get_docstring(TREES[path])))
    assert sorted(there - said) == []


@pytest.mark.parametrize("path", FILES, ids=name)
def test_no_function_takes_more_than_eight_parameters(path):
    def count(node: Function) -> int:
        a = node.args
        names = [x.arg for x in [*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, (a.vararg, a.kwarg))]]
        return len([n for n in names if n not in ("self", "cls", "ctx")])

    def is_command(node: Function) -> bool:
        return any(isinstance(d, ast.Call) and getattr(d.func, "attr", "") == "command" for d in node.decorator_list)

    functions = [n for n in ast.walk(TREES[path]) if isinstance(n, Function) and not is_command(n)]
    assert {n.name: count(n) for n in functions if count(n) > 8} == {}, "a command alone is as wide as its options"


def test_every_row_of_the_table_has_a_meaning():
    assert all(meaning.strip() and isinstance(unit, str) for unit, meaning in METRICS.values())
