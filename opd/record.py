"""The base of everything that a recipe can hold: frozen, typed, and refusing what it does not know."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(gt=0, le=1, description="a share in (0, 1]")]


class Record(BaseModel):
    """A frozen pydantic record; unknown keys are refused, and every value is checked for its type."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
