"""The base of everything that a recipe can hold: frozen, typed, refusing what it does not know; and ramps."""

from __future__ import annotations

import math
from typing import Annotated, Any, Generic, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

Share = Annotated[float, Field(gt=0, le=1)]
Number = TypeVar("Number")


class Record(BaseModel):
    """A frozen pydantic record; unknown keys are refused, and every value is checked for its type."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _true_is_no_number(cls, data: Any) -> Any:
        for name, value in data.items() if isinstance(data, dict) else ():
            field = cls.model_fields.get(name)
            kinds = (field.annotation, *get_args(field.annotation)) if field else ()
            if field and isinstance(value, bool) and not any(kind is bool or kind is value for kind in kinds):
                keys = [
                    key
                    for kind in kinds
                    if isinstance(kind, type) and issubclass(kind, Record)
                    for key in kind.model_fields
                ]
                way = f"; give some of {', '.join(keys)}" if keys else ""
                raise ValueError(f"{name!r} can't be {value}: it is no yes-or-no key{way}")
        return data


class Ramp(Record, Generic[Number]):
    """A number that moves from `start` to `end` while training goes on; `opd/schedules.py` resolves it each step."""

    shape: Literal["linear", "cosine"] = "linear"
    """linear is D³S's (arXiv 2509.22115); cosine leaves and arrives slowly."""
    start: Number
    """The value of the first step."""
    end: Number
    """The value of the last step."""

    def at(self, progress: float) -> float:
        """The value at a progress in [0, 1] (clipped to it).

        >>> Ramp[float](start=0.2, end=0.4).at(0.5)
        0.30000000000000004
        """
        share = min(max(progress, 0.0), 1.0)
        if self.shape == "cosine":
            share = (1 - math.cos(math.pi * share)) / 2
        return (1 - share) * self.start + share * self.end


def scheduled(number: Any) -> Any:
    """The type of a field that holds a number, or a ramp between two such numbers."""
    return Annotated[
        Annotated[number, Tag("number")] | Annotated[Ramp[number], Tag("ramp")],
        Discriminator(lambda value: "ramp" if isinstance(value, (dict, Ramp)) else "number"),
    ]


def as_number(value: Any) -> float | int:
    """The number itself; TypeError for a ramp, which is no number before `schedules.at` has resolved it."""
    if isinstance(value, Ramp):
        raise TypeError(f"{value!r} moves with progress: resolve the recipe with opd.schedules.at first")
    return value
