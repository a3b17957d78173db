"""Which call counts as which phase: functions of ours and TRL's are wrapped by name, timed by `opd.metrics.Clock`.

A phase's time is its own: teacher, forward, head, head_backward, backward and optimizer never overlap.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import ExitStack
from functools import reduce, wraps
from typing import Any

from torch import Tensor

from opd.errors import OpdError
from opd.metrics import Clock

Function = Callable[..., Any]
Seams = dict[str, Callable[[Function], Function]]
"""`module:Class.function` → what wraps it."""


class Phases:
    """Wraps functions, so that their seconds and peak memory stand in the clock."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._backward = ExitStack()

    def during(self, phase: str) -> Callable[[Function], Function]:
        """All of the function is the phase."""
        return self.named(lambda *_, **__: phase)

    def named(self, phase_of: Callable[..., str]) -> Callable[[Function], Function]:
        """The phase follows from the arguments."""

        def wrap(function: Function) -> Function:
            @wraps(function)
            def timed(*args: Any, **kwargs: Any) -> Any:
                with self.clock(phase_of(*args, **kwargs)):
                    return function(*args, **kwargs)

            return timed

        return wrap

    def head(self, function: Function) -> Function:
        """The head's forward; its backward ends where the student's hidden states have their gradient.

        Both heads take these states first of all that has a gradient.
        """

        @wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            hidden = next((x for x in (*args, *kwargs.values()) if isinstance(x, Tensor) and x.requires_grad), None)
            if hidden is not None:
                hidden.register_hook(self._leave_head)
            with self.clock("head"):
                return function(*args, **kwargs)

        return timed

    def backward(self, function: Function) -> Function:
        """The whole backward pass, which begins in the head."""

        @wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            with ExitStack() as self._backward:
                self._backward.enter_context(self.clock("head_backward"))
                return function(*args, **kwargs)

        return timed

    def _leave_head(self, _: Tensor) -> None:
        self._backward.close()
        self._backward.enter_context(self.clock("backward"))


def install(seams: Seams) -> None:
    """Put each wrapper around its `module:Class.function`; OpdError where the code has none of that name."""
    for place, wrap in seams.items():
        module, _, path = place.partition(":")
        *owners, name = path.split(".")
        try:
            owner = reduce(getattr, owners, importlib.import_module(module))
            function = getattr(owner, name)
        except (ModuleNotFoundError, AttributeError) as error:
            raise OpdError(f"the benchmark times {place}, which is not there ({error}); name the new place") from None
        setattr(owner, name, wrap(function))
