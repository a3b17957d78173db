"""Which rollouts of a step train: one rule, one small file. `base.py` says what a rule sees.

`all_rollouts.py`, `max_variance.py`, `random_rollouts.py`, `drop_unlikely.py`. To add one: write its file, and add it
to ROLLOUT_SELECTORS.
"""

from opd.selection.rollouts.all_rollouts import AllRollouts
from opd.selection.rollouts.base import RolloutSelector
from opd.selection.rollouts.drop_unlikely import DropUnlikely
from opd.selection.rollouts.max_variance import MaxVariance
from opd.selection.rollouts.random_rollouts import RandomRollouts

ROLLOUT_SELECTORS: dict[str, type[RolloutSelector]] = {
    "all": AllRollouts,
    "max_variance": MaxVariance,
    "random": RandomRollouts,
    "drop_unlikely": DropUnlikely,
}
