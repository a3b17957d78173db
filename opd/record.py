"""The base of everything that a recipe can hold: frozen, typed, and refusing what it does not know."""

from typing import Annotated, Any, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

Share = Annotated[float, Field(gt=0, le=1)]


class Record(BaseModel):
    """A frozen pydantic record; unknown keys are refused, and every value is checked for its type."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _true_is_no_number(cls, data: Any) -> Any:
        for name, value in data.items() if isinstance(data, dict) else ():
            field = cls.model_fields.get(name)
            if field and isinstance(value, bool) and bool not in (field.annotation, *get_args(field.annotation)):
                raise ValueError(f"{name!r} can't be {value}: it is no yes-or-no key")
        return data
