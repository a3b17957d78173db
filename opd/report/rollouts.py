"""Rollouts on disk, with text, and for each trained token its statistics and what it weighed."""

from __future__ import annotations

from pathlib import Path

from opd.batch import Rollout
from opd.doctor import Checked
from opd.rollout.source import step_file, write_rollouts
from opd.step import Outcome


def record_rollouts(folder: Path, index: int, rollouts: list[Rollout], outcome: Outcome, checked: Checked) -> None:
    """The step's first `metrics.rollouts` rollouts as JSONL; `rollout.path` of another recipe can read them again."""
    shown = rollouts[: checked.recipe.metrics.rollouts]
    if shown:
        write_rollouts(step_file(folder, index), shown, [_more(i, r, outcome, checked) for i, r in enumerate(shown)])


def _more(i: int, rollout: Rollout, outcome: Outcome, checked: Checked) -> dict:
    mine_C = outcome.table.rollout_C == i
    columns = outcome.table.statistics
    return {
        "prompt": checked.tokenizer.decode(
            [t for t, own in zip(rollout.token_ids, rollout.trained, strict=True) if not own]
        ),
        "text": checked.tokenizer.decode(rollout.completion),
        "reward": float(outcome.table.reward_B[i]),
        "weights": [weight_C[mine_C].tolist() for weight_C in outcome.weights],
        "statistics": {name: [round(x, 5) for x in column[mine_C].tolist()] for name, column in columns.items()},
    }
