"""Atomic checkpoints: written aside, fsynced, renamed. A checkpoint that has its name is whole."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from opd.distributed import Trainer
from opd.errors import RunError
from opd.run import checkpoints_in


def save(folder: Path, trainer: Trainer, *, steps: int, keep: int) -> None:
    """Write `folder/step-<steps>`, then drop all but the newest `keep`; collective."""
    ranks = trainer.ranks
    aside, final = folder / f".step-{steps:06d}.tmp", folder / f"step-{steps:06d}"
    if ranks.is_main:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
    ranks.barrier()
    trainer.save(aside)
    ranks.barrier()
    if ranks.is_main:
        (aside / "state.json").write_text(
            json.dumps({"steps": steps, "ranks": ranks.count, "zero": trainer.zero_stage})
        )
        _sync_tree(aside)
        aside.replace(final)
        _sync(folder)
        for old in checkpoints_in(folder)[:-keep]:
            shutil.rmtree(old.replace(old.with_name(f".{old.name}.old")))
    ranks.barrier()


def load(folder: Path, trainer: Trainer) -> int:
    """Continue from the newest checkpoint; returns its steps. RunError if another rank count or ZeRO stage wrote it."""
    newest = checkpoints_in(folder)[-1]
    state = json.loads((newest / "state.json").read_text())
    for name, now in {"ranks": trainer.ranks.count, "zero": trainer.zero_stage}.items():
        if state[name] != now:
            words = {"ranks": "ranks", "zero": "ZeRO stage"}[name]
            raise RunError(
                f"{newest} was written with {words} {state[name]}, and this run has {now}; resume with {state[name]}"
            )
    trainer.load(newest)
    return state["steps"]


def _sync_tree(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
