"""Errors that a user can mend: one flat family, each named after the boundary that failed.

`opd` prints such an error as one line (what, why, the way out) and ends with its exit code: 2 for what
was asked, 1 for what went wrong later.
"""


class OpdError(Exception):
    """Base of all errors whose message is meant for the user and needs no traceback."""

    exit_code = 2


class RecipeError(OpdError):
    """The recipe is not valid, or asks for a combination that does not exist."""


class DataError(OpdError):
    """A data set is missing, empty or lacks a column."""


class ModelError(OpdError):
    """A model or tokenizer can't be loaded, or does not fit the other one."""


class EngineError(OpdError):
    """A rollout engine can't start."""


class RunError(OpdError):
    """The run folder forbids what was asked: it exists, or holds nothing to resume."""


class HubError(OpdError):
    """The Hugging Face hub can't take what is to be uploaded."""


class UploadError(OpdError):
    """An upload broke off; what it would have sent lies where it was."""

    exit_code = 1


class TrainingError(OpdError):
    """Training can't go on: non-finite values in several steps running."""

    exit_code = 1


def reason_of(error: BaseException) -> str:
    """The first line that an error of someone else's says, or its type's name where it says nothing.

    >>> reason_of(ValueError("\\n no such file\\nlook elsewhere")), reason_of(OSError())
    ('no such file', 'OSError')
    """
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
