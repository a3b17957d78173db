"""One rank of a head cut by vocabulary, over gloo: statistics and gradient of its own rows, saved for the test."""

from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

from opd.head.loss import head_loss
from opd.head.pay import DensePay
from opd.head.settings import HeadSettings
from opd.head.shard import VocabShard
from opd.head.statistics import row_statistics
from opd.head.weights import HiddenStates
from opd.objectives import OBJECTIVES
from opd.objectives.jsd import JSD
from opd.vocab_ranks import AllRows, RankShard
from tests.build import random_states

V, SETTINGS = 13, HeadSettings(temperature=0.8, candidates=3, stop=(2, 11), merge_stop=True, tile_bytes=600)
NAMES = ("reverse_kl", "student_entropy", "teacher_logprob", "candidate_id", "student_normaliser", "teacher_normaliser")


def models(rows: int) -> tuple[HiddenStates, HiddenStates]:
    """Student and teacher of all rows, whole."""
    return random_states(rows, 4, V, seed=1), random_states(rows, 6, V, seed=2)


def found_by(
    student: HiddenStates, teacher: HiddenStates, ids_N: torch.Tensor, weight_N: torch.Tensor, shard: VocabShard | None
) -> dict[str, torch.Tensor]:
    """Statistics, loss, and gradients of hidden states and weight."""
    leaves = [x.detach().clone().requires_grad_() for x in (student.hidden_NH, student.head.weight_VH)]
    own = HiddenStates(leaves[0], replace(student.head, weight_VH=leaves[1]))
    pays = [DensePay(OBJECTIVES["reverse_kl"](), weight_N), DensePay(JSD(beta=0.4), weight_N.flip(0))]
    loss = head_loss(own, teacher, pays, ids_N, SETTINGS, shard=shard)
    hidden, weight = torch.autograd.grad(loss, leaves)
    statistics = row_statistics(NAMES, student, teacher, ids_N, SETTINGS, shard)
    return statistics | {"loss": loss.detach(), "hidden": hidden, "weight": weight}


def rank(index: int, folder: str, counts: list[int], weight_N: torch.Tensor) -> None:
    """Rank `index` of len(counts), which has counts[index] rows."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=index, world_size=len(counts))
    student, teacher = models(sum(counts))
    mine = torch.arange(sum(counts)).split(counts)[index]
    rows = AllRows.of(len(mine), torch.device("cpu"))
    shard = replace(RankShard.of_rank(V), rows=rows)
    parts = [
        HiddenStates(states.hidden_NH[mine], states.head.part(shard.start, shard.stop)) for states in (student, teacher)
    ]
    found = found_by(*parts, torch.arange(sum(counts)) % V, weight_N, shard)
    own = {name: x if name in ("loss", "weight", "hidden") else x[rows.place] for name, x in found.items()}
    torch.save(own, Path(folder, f"{index}.pt"))
    dist.destroy_process_group()
