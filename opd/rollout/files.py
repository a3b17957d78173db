"""Rollouts on disk: a JSONL file for each step, one rollout a line."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from pathlib import Path

from opd.batch import Rollout
from opd.errors import DataError


def step_file(folder: str | Path, step: int) -> Path:
    """The file of a step's rollouts; steps count from 1 in names, as they do for people."""
    return Path(folder) / f"step-{step + 1:06d}.jsonl"


def read_rollouts(path: Path) -> list[Rollout]:
    """Rollouts from a JSONL file; keys beyond Rollout's own (statistics, text) are left out."""
    if not path.is_file():
        raise DataError(f"there are no recorded rollouts at {str(path)!r}; record as many steps as you train")
    names = {f.name for f in fields(Rollout)}
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [Rollout(**{k: v for k, v in line.items() if k in names}) for line in lines]


def recorded_temperature(path: Path) -> float | None:
    """The temperature at which a step's rollouts were sampled, where its file says it; all of a file share one."""
    with path.open() as lines:
        return json.loads(next(lines, "{}")).get("temperature")


def write_rollouts(path: Path, rollouts: list[Rollout], more: list[dict] | None = None) -> None:
    """One JSON line a rollout, with whatever `more` says about each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = zip(rollouts, more or [{}] * len(rollouts), strict=True)
    path.write_text("".join(json.dumps(asdict(r) | extra, default=str) + "\n" for r, extra in rows))
