"""One rank of a head cut by vocabulary, over gloo: statistics and gradient of its own rows, saved for the test."""

from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from opd.head.pay import ChosenPay, DensePay
from opd.head.settings import HeadSettings
from opd.head.shard import VocabShard
from opd.head.statistics import NORMALISERS, row_statistics
from opd.head.weights import HiddenStates
from opd.objectives import OBJECTIVES
from opd.objectives.jsd import JSD
from opd.vocab_ranks import AllRows, RankShard
from tests.build import Models, gradient, random_states

V, SETTINGS = 13, HeadSettings(temperature=0.8, candidates=3, stop=(2, 11), merge_stop=True, tile_bytes=600)
KLS, OTHERS = ("reverse_kl", "forward_kl"), ("student_entropy", "teacher_logprob", "candidate_id")
OWN = ("loss", "hidden", "weight", "bias")
"""What a rank finds of its own rows or weights alone, or of all; the rest has a row for each of all ranks'."""


def models(rows: int) -> tuple[HiddenStates, HiddenStates]:
    """Student and teacher of all rows, whole; the teacher rules out a token: both KLs count that, each its own way."""
    student, teacher = random_states(rows, 4, V, seed=1), random_states(rows, 6, V, seed=2)
    teacher.head.bias_V[4] = -torch.inf
    return student, teacher


def found_by(
    student: HiddenStates, teacher: HiddenStates, ids_N: Tensor, weight_N: Tensor, shard: VocabShard | None
) -> dict[str, Tensor]:
    """Statistics; loss and gradients of hidden states, weight and bias, by sums of its own and by known ones."""
    statistics = row_statistics((*KLS, *OTHERS, *NORMALISERS), student, teacher, ids_N, SETTINGS, shard)
    kl, entropy = DensePay(OBJECTIVES["forward_kl"](), weight_N), DensePay(OBJECTIVES["entropy"](), weight_N)
    ids_NK = torch.stack([ids_N, (ids_N + 2) % V], -1)
    chosen = ChosenPay(ids_NK, torch.stack([weight_N, -weight_N.flip(0)], -1))
    terms = {"": [kl, DensePay(JSD(beta=0.4), weight_N.flip(0)), chosen], "known_": [kl, entropy, chosen]}
    found = dict(statistics)
    for name, pays in terms.items():
        known = statistics if name else None
        loss, grads = gradient(Models(student, teacher), pays, ids_N, SETTINGS, known, shard)
        found |= {f"{name}loss": loss} | {f"{name}{part}": grad for part, grad in grads.items()}
    return found


def rank(index: int, folder: str, counts: list[int], weight_N: Tensor) -> None:
    """Rank `index` of len(counts), which has counts[index] rows."""
    torch.set_num_threads(1)
    for name in ("all_reduce", "all_gather"):
        setattr(dist, name, as_nccl_would(getattr(dist, name)))
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=index, world_size=len(counts))
    student, teacher = models(sum(counts))
    mine = torch.arange(sum(counts)).split(counts)[index]
    rows = AllRows.of(len(mine), torch.device("cpu"))
    shard = replace(RankShard.of_rank(V), rows=rows)
    parts = [
        HiddenStates(states.hidden_NH[mine], states.head.part(shard.start, shard.stop)) for states in (student, teacher)
    ]
    found = found_by(*parts, torch.arange(sum(counts)) % V, weight_N, shard)
    own = {name: x if name.removeprefix("known_") in OWN else x[rows.place] for name, x in found.items()}
    torch.save(own, Path(folder, f"{index}.pt"))
    dist.destroy_process_group()


def as_nccl_would(collective):
    """The collective, refusing tensors that are not contiguous, which gloo takes."""

    def checked(*tensors, **more):
        for tensor in tensors:
            parts = tensor if isinstance(tensor, list) else [tensor]
            assert all(part.is_contiguous() for part in parts), f"{collective.__name__} of a tensor with gaps or turned"
        return collective(*tensors, **more)

    return checked
