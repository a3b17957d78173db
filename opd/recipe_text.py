"""A recipe's text: YAML and overrides in, one-line complaints or a `Recipe` out, and `opd schema`'s lines.

`load_recipe` raises `RecipeError` with one line that names the value, the reason and the way out. Nothing here loads a
model or a tokenizer.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from reprlib import repr as short
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from opd import synonyms
from opd.config import Recipe
from opd.errors import RecipeError
from opd.record import Ramp, Record

UNKNOWN_KEY = ("extra_forbidden", "invalid_key")
"""What pydantic calls a key that no record has."""


def load_recipe(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """The recipe in a YAML file, with `key.path=value` overrides applied (values are YAML).

    Raises RecipeError in one line for a file that is missing or not YAML, an unknown key (with the nearest known
    one), a wrong type or value, or a combination that does not exist.
    """
    path = Path(path)
    try:
        data = yaml.load(path.read_text(), _PlainYaml)
    except OSError as error:
        raise RecipeError(f"can't read recipe {str(path)!r}: {error.strerror}; give the path of a YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is not plain YAML ({_yaml_problem(error)}); write keys and values only") from None
    if data is None:
        raise RecipeError(f"recipe {str(path)!r} is empty; see recipes/ for examples and `opd schema` for every key")
    if not isinstance(data, dict):
        raise RecipeError(f"{path} holds a {type(data).__name__}, not keys with values; see recipes/ for examples")
    for override in overrides or []:
        _override(data, override)
    return parse_recipe(data)


def parse_recipe(data: dict[Any, Any]) -> Recipe:
    """A recipe from plain data; RecipeError names the first few problems in one line."""
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        unknown_first = sorted(error.errors(), key=lambda item: item["type"] not in UNKNOWN_KEY)
        problems = [_problem(item) for item in unknown_first[:3]]
        raise RecipeError("; ".join(problems)) from None


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML, every default written out."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


@dataclass(frozen=True)
class FieldLine:
    """One field of the recipe in words: `loss.0.select(soft_or).clip`, `float > 0, <= 1`, `0.98`, its sentence."""

    key: str
    type: str
    default: str
    sentence: str


def field_lines(record: type[Record] = Recipe, prefix: str = "") -> Iterator[FieldLine]:
    """Every field at every depth, in order; a section is followed by its own fields, a union by those of each type."""
    for name, field in record.model_fields.items():
        key, inner = prefix + name, list(_records(field.annotation))
        meaning = _sentence(field, [record] if name == "type" else inner)
        yield FieldLine(key, _type_words(field), _default_words(field, inner), meaning)
        listed = key + (".0" if get_origin(field.annotation) is list else "")
        for choice in inner:
            tag = f"({choice.model_fields['type'].default})" if len(inner) > 1 else ""
            yield from field_lines(choice, f"{listed}{tag}.")


class _PlainYaml(yaml.SafeLoader):
    """Plain YAML that refuses a key given twice, of which YAML itself silently drops the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _override(data: dict[Any, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals:
        raise RecipeError(f"override {override!r} has no '='; write key.path=value")
    *parents, last = key.split(".")
    try:
        value = yaml.load(text, _PlainYaml)
        node = reduce(_child, parents, data)
        if isinstance(node, list):
            node[int(last)] = value
        else:
            node[last] = value
    except yaml.YAMLError as error:
        raise RecipeError(
            f"override {override!r}: the value is not YAML ({_yaml_problem(error)}); quote it, or mend it"
        ) from None
    except (ValueError, IndexError, TypeError, AttributeError):
        raise RecipeError(
            f"override {override!r} names no place in the recipe; lists take a number, as in loss.0.weight=1"
        ) from None


def _child(node: Any, key: str) -> Any:
    if isinstance(node, list):
        return node[int(key)]
    if node.get(key) is None:
        node[key] = {}
    return node[key]


def _yaml_problem(error: yaml.YAMLError | UnicodeDecodeError) -> str:
    mark = getattr(error, "problem_mark", None)
    where = f", line {mark.line + 1}" if mark else ""
    return f"{getattr(error, 'problem', None) or getattr(error, 'reason', None) or 'unreadable'}{where}"


def _problem(item: dict[str, Any]) -> str:
    """One line for one of pydantic's errors: where, what, and the way out."""
    key, record, field = _place(item["loc"])
    inner = list(_records(field.annotation)) if field else []
    types = ", ".join(repr(choice.model_fields["type"].default) for choice in inner if "type" in choice.model_fields)
    means = _sentence(field, inner).rstrip(".") if field else ""
    match item["type"]:
        case kind if kind in UNKNOWN_KEY:
            return f"unknown key {key!r}: it has no effect here; {_known(str(item['loc'][-1]), record)}"
        case "missing":
            return f"missing key {key!r}: the recipe needs it; {key} means: {means}"
        case "union_tag_invalid":
            near = difflib.get_close_matches(str(item["ctx"]["tag"]), types.replace("'", "").split(", "), n=1)
            hint = f"did you mean {near[0]!r}? there are {types}" if near else f"choose one of {types}"
            return f"{key}: there is no type {item['ctx']['tag']!r}; {hint}"
        case "union_tag_not_found":
            return f"{key} has no 'type'; give one of {types}"
        case "model_type" | "model_attributes_type" | "dict_type":
            keys = ", ".join(inner[0].model_fields) if len(inner) == 1 else f"'type' (one of {types}) and its settings"
            return f"{key} can't be {short(item['input'])}: it holds keys with values; give {keys}"
        case "string_pattern_mismatch":
            return f"{key} can't be {short(item['input'])}; {key} means: {means}"
        case "value_error":
            return f"{key}: {item['msg'].removeprefix('Value error, ')}"
    reason = item["msg"].replace("Input should", "it should")
    return f"{key} can't be {short(item['input'])}: {reason}" + (f"; {key} means: {means}" if means else "")


def _known(word: str, record: type[Record] | None) -> str:
    """A way from an unknown key: ours for another trainer's word, the nearest of its section, or all there are."""
    known = list(record.model_fields) if record else []
    if way := synonyms.way_from(word, known):
        return way
    near = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"


def _place(loc: tuple[int | str, ...]) -> tuple[str, type[Record] | None, FieldInfo | None]:
    """What pydantic's path names: the key as the user wrote it, the record it stands in, its field if it has one."""
    keys: list[str] = []
    record: type[Record] | None = None
    field: FieldInfo | None = None
    records: list[type[Record]] = [Recipe]
    for part in loc:
        if len(records) > 1 and (tagged := [r for r in records if r.model_fields["type"].default == part]):
            records = tagged  # pydantic names the chosen type of a union in its path; the user's path does not
            continue
        if part in ("number", "ramp") and field is not None and (ramps := _ramps(field.annotation)):
            record, records = None, ramps if part == "ramp" else []  # nor is a schedule's
            continue
        keys.append(str(part))
        if isinstance(part, int):
            continue
        record = records[0] if len(records) == 1 else None
        field = record.model_fields.get(part) if record else None
        records = list(_records(field.annotation)) if field else []
    return ".".join(keys) or "recipe", record, field


def _records(annotation: Any) -> list[type[Record]]:
    """The sections that a field can hold; a ramp stands for a number and is none."""
    return [record for record in _all_records(annotation) if not issubclass(record, Ramp)]


def _ramps(annotation: Any) -> list[type[Record]]:
    return [record for record in _all_records(annotation) if issubclass(record, Ramp)]


def _all_records(annotation: Any) -> list[type[Record]]:
    if isinstance(annotation, type) and not isinstance(annotation, UnionType) and issubclass(annotation, Record):
        return [annotation]
    return [record for part in get_args(annotation) for record in _all_records(part)]


def _sentence(field: FieldInfo, inner: list[type[Record]]) -> str:
    """What a field means: its own sentence, or the first line of its section's docstring."""
    if field.description:
        return " ".join(field.description.split())
    return inner[0].__doc__.strip().splitlines()[0] if len(inner) == 1 else ""


def _type_words(field: FieldInfo) -> str:
    return f"{_words(field.annotation)} {_limits(field.metadata)}".strip()


def _limits(metadata: Iterable[Any]) -> str:
    bounds = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    inner = [m for item in metadata for m in (item.metadata if isinstance(item, FieldInfo) else [item])]
    return ", ".join(f"{sign} {getattr(m, name)}" for m in inner for name, sign in bounds.items() if hasattr(m, name))


def _words(annotation: Any) -> str:
    arguments = get_args(annotation)
    if get_origin(annotation) is Annotated:
        return f"{_words(arguments[0])} {_limits(annotation.__metadata__)}".strip()
    if isinstance(annotation, type) and issubclass(annotation, Ramp):
        return "ramp"
    if get_origin(annotation) is Literal:
        return " | ".join(map(str, arguments))
    if records := _records(annotation):
        section = " | ".join(str(r.model_fields["type"].default) for r in records) if len(records) > 1 else "keys"
        return f"list of {section}" if get_origin(annotation) is list else section
    if get_origin(annotation) in (dict, list, tuple):
        return get_origin(annotation).__name__
    if arguments:
        return " | ".join(_words(a) for a in arguments)
    return "null" if annotation is NoneType else annotation.__name__


def _default_words(field: FieldInfo, inner: list[type[Record]]) -> str:
    if field.is_required():
        return "required"
    default = field.get_default(call_default_factory=True)
    if isinstance(default, Record):
        return default.type if len(inner) > 1 else "its own"
    return "null" if default is None else str(list(default) if isinstance(default, tuple) else default)
