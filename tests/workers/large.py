"""Run by tests/conftest.py under `accelerate launch`: a student's steps, then teachers in parts beside whole ones.

    python -m tests.workers.large FOLDER

The steps leave FOLDER/several.pt, and each rank FOLDER/<rank>.pt: what teachers said, and loss and gradient of steps
with them, in parts and whole.
"""

from __future__ import annotations

import gc
import sys
import weakref
from pathlib import Path
from typing import Any

import torch

from opd import distributed
from opd.batch import Prompt
from opd.distributed import Ranks, Trainer
from opd.model_spec import ModelSettings
from opd.packing import lay_out
from opd.step import micro_batches
from opd.teacher.check import check_reading
from opd.teacher.local import LocalTeacher
from opd.teacher.sharded import ShardedTeacher, load_sharded, whole_head
from opd.vocab_ranks import RankShard
from tests import cases
from tests.workers.ranks import gradient, several, start

STEPS = [
    ("soft_or_batch", 40, cases.rollouts()),
    ("all", 40, cases.rollouts()),
    ("soft_or_batch", 40, cases.rollouts()[2:3]),
]
"""Two passes and one, several micro-batches; the last has one rollout, so the other rank has none."""


def stored(ranks: Ranks, folder: Path, *, tied: bool) -> str:
    """A teacher's model folder."""
    path = folder / ("tied" if tied else "untied")
    if ranks.is_main:
        cases.model(2, hidden=24, tied=tied, dtype=torch.float32).save_pretrained(path)
    ranks.barrier()
    return str(path)


def in_parts(path: str, shard: RankShard | None, *, offload: bool) -> ShardedTeacher:
    model, engine = load_sharded(ModelSettings(model=path), torch.float32, offload=offload)
    with whole_head(model):
        check_reading(model, [Prompt(i, list(range(3 + i, 12 + 2 * i))) for i in range(4)], "rows", path)
    return ShardedTeacher(model, engine, shard, offload=offload)


def held(teacher: LocalTeacher) -> dict[str, int]:
    """Elements of its weights on this rank: whole ones, parts that wait, and a head put together."""
    parameters = list(teacher.model.parameters())
    parts = sum(p.ds_tensor.numel() for p in parameters if hasattr(p, "ds_tensor"))
    head = getattr(teacher, "_head", None)
    return {
        "whole": sum(p.numel() for p in parameters),
        "parts": parts,
        "head": 0 if head is None else head.weight_VH.numel(),
    }


def said(teacher: LocalTeacher, ranks: Ranks) -> dict[str, Any]:
    """States and head for batches of which each rank has another, and one of which rank 1 has none."""
    places = [[0, 2], [4, 5, 6]] if ranks.is_main else [[8], []]
    scores = [teacher.score(lay_out(cases.rollouts(), place, layout="rows")) for place in places]
    found: dict[str, Any] = {"states": [s.hidden_NH for s in scores]}
    gone, found["head"], scores = weakref.ref(scores[0].head.weight_VH), scores[0].head.weight_VH.clone(), None
    teacher.rest()
    gc.collect()
    return found | {"held": held(teacher), "head_gone": gone() is None, "vocabulary": teacher.vocabulary}


def steps(trainer: Trainer, ranks: Ranks, teacher: LocalTeacher) -> list[dict[str, Any]]:
    """Loss, gradient and rollouts of each micro-batch of STEPS."""
    found = []
    for name, budget, rollouts in STEPS:
        run = cases.run(
            cases.recipe(name, token_budget=budget), trainer=trainer, dtype=torch.float32, ranks=ranks, teacher=teacher
        )
        outcome, grads = gradient(run, rollouts)
        batches = [len(batch.rollouts) for batch in micro_batches(run, rollouts)]
        found.append({"loss": outcome.metrics["loss"], "grads": grads, "batches": batches, "held": held(teacher)})
    return found


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    trainer, ranks = start("fp32", max_grad_norm=1.0, tied=True)
    several(trainer, ranks, "fp32", folder)
    paths = {tied: stored(ranks, folder, tied=tied) for tied in (False, True)}
    part = RankShard.of_rank(cases.VOCABULARY)
    found = {}
    for kind in ("whole", "tied", "by_vocabulary", "offloaded"):
        tied, shard = kind == "tied", part if kind in ("by_vocabulary", "offloaded") else None
        whole = LocalTeacher(cases.model(2, hidden=24, tied=tied, dtype=torch.float32).requires_grad_(False), shard)
        for place, teacher in (("whole", whole), ("parts", in_parts(paths[tied], shard, offload=kind == "offloaded"))):
            found[kind, place] = said(teacher, ranks)
            if kind in ("whole", "by_vocabulary"):
                found[kind, place]["steps"] = steps(trainer, ranks, teacher)
    torch.save(found, folder / f"{ranks.index}.pt")
    distributed.leave(ranks)
