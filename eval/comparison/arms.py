"""The arms of the comparison: one line each."""

import json
from dataclasses import dataclass
from typing import Any

from opd.errors import RecipeError


@dataclass(frozen=True)
class Arm:
    """One line of the comparison: a selector's settings, and what else the recipe needs for it. once: seed 0 only."""

    name: str
    select: dict[str, Any]
    also: tuple[str, ...] = ()
    once: bool = False

    def overrides(self, seed: int, terms: int = 1) -> list[str]:
        """What `opd train` is told beside a recipe of so many terms."""
        selects = [f"loss.{i}.select={json.dumps(self.select)}" for i in range(terms)]
        return [*selects, *self.also, f"seed={seed}", f"name={self.name}-{seed}"]


ARMS = (
    Arm("full", {"type": "all"}),
    Arm("random-20", {"type": "random", "keep": 0.2}),
    Arm("random-50", {"type": "random", "keep": 0.5}),
    Arm("entropy-20", {"type": "entropy", "keep": 0.2}),
    Arm("entropy-50", {"type": "entropy", "keep": 0.5}),
    Arm("soft_or-20", {"type": "soft_or", "keep": 0.2}),
    Arm("soft_or-50", {"type": "soft_or", "keep": 0.5}),
    Arm("q3-20", {"type": "q3", "keep": 0.2}),
    Arm("q3-50", {"type": "q3", "keep": 0.5}),
    Arm("dial-20", {"type": "dial", "keep": 0.2}),
    Arm("dial-50", {"type": "dial", "keep": 0.5}),
    Arm("first_n-20", {"type": "first_n", "tokens": 11}, once=True),  # a fifth of a mean answer
    Arm("divergence-20", {"type": "divergence", "keep": 0.2}, once=True),
    Arm("d3s-20", {"type": "d3s", "keep": 0.2}, also=("advantage=reward",), once=True),
    Arm("opener-20", {"type": "opener", "entropy_share": 0.2}, once=True),  # a fifth of the entropy, not of the tokens
    Arm("surprisal-20", {"type": "surprisal", "keep": 0.2}, once=True),
    Arm("soft_gate-20", {"type": "soft_gate", "choose": "top", "keep": 0.2}, once=True),
)


def arms_named(names: str | None) -> list[Arm]:
    """The arms of a comma-separated list, in the order of ARMS; all of them for None."""
    wanted = names.split(",") if names else [arm.name for arm in ARMS]
    if unknown := set(wanted) - {arm.name for arm in ARMS}:
        raise RecipeError(f"there is no arm {', '.join(sorted(unknown))}; choose of {', '.join(a.name for a in ARMS)}")
    return [arm for arm in ARMS if arm.name in wanted]
