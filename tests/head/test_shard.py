"""A head cut by vocabulary gives what the whole head gives, however it is cut."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import chain, combinations, pairwise

import pytest
import torch
from torch import Tensor

from opd.head.loss import head_loss
from opd.head.pay import ChosenPay, DensePay, RowsPay
from opd.head.settings import HeadSettings
from opd.head.shard import VocabShard
from opd.head.statistics import STATISTICS, row_statistics
from opd.head.weights import HiddenStates
from opd.objectives import OBJECTIVES
from opd.objectives.jsd import JSD
from opd.vocab_ranks import RankShard
from tests.build import TILE, Models, gradient, random_states
from tests.launching import forked
from tests.workers import shards

N, V = 5, 11
OBJECTIVES_PAID = [OBJECTIVES["reverse_kl"](), JSD(beta=0.3), OBJECTIVES["entropy"]()]


@dataclass
class Meeting:
    """Threads that are ranks: each brings a tensor, and all get all."""

    ranks: int
    brought: list = field(default_factory=list)

    def __post_init__(self) -> None:
        self.brought, self.barrier = [None] * self.ranks, threading.Barrier(self.ranks, timeout=60)

    def gather(self, rank: int, tensor: Tensor) -> Tensor:
        self.brought[rank] = tensor
        self.barrier.wait()
        together = torch.stack(self.brought)
        self.barrier.wait()
        return together


@dataclass(frozen=True)
class ThreadShard(VocabShard):
    rank: int = 0
    meeting: Meeting | None = None

    def sum(self, tensor: Tensor) -> Tensor:
        return self.gather(tensor).sum(0)

    def gather(self, tensor: Tensor) -> Tensor:
        return self.meeting.gather(self.rank, tensor)


def models(seed: int = 1) -> tuple[HiddenStates, HiddenStates]:
    return random_states(N, 4, V, seed=seed, softcap=4.0, scale=1.5), random_states(N, 6, V, seed=seed + 1)


def everything(
    student: HiddenStates, teacher: HiddenStates, settings: HeadSettings, shard: VocabShard | None
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """All statistics; loss and gradients without and with known sums."""
    ids_N, weight_N = torch.arange(N) * 3 % V, torch.tensor([1.0, 0.5, 0.0, 2.0, 0.3], dtype=torch.float64)
    found = row_statistics(STATISTICS, student, teacher, ids_N, settings, shard)
    slope_NK = torch.tensor([[0.3, -0.7]] * N, dtype=torch.float64)
    chosen = ChosenPay(torch.stack([ids_N, (ids_N + 4) % V], -1), slope_NK)
    results = []
    for objectives, known in ((OBJECTIVES_PAID, None), (OBJECTIVES_PAID[::2], found)):
        pays = [*(DensePay(objective, weight_N) for objective in objectives), chosen]
        loss, grads = gradient(Models(student, teacher), pays, ids_N, settings, known, shard)
        results += [loss, *grads.values()]
    return found, results


def cut(states: HiddenStates, shard: VocabShard) -> HiddenStates:
    return replace(states, head=states.head.part(shard.start, shard.stop))


def assert_cut_is_whole(pool: ThreadPoolExecutor, edges: list[int], settings: HeadSettings, whole: tuple) -> None:
    """Every rank's results are the whole's; the gradient of weight and bias is that of its own rows."""
    meeting, (student, teacher) = Meeting(len(edges) - 1), models()
    widest = max(b - a for a, b in pairwise(edges))
    shards = [ThreadShard(a, b, V, widest, rank, meeting) for rank, (a, b) in enumerate(pairwise(edges))]
    jobs = [pool.submit(everything, cut(student, s), cut(teacher, s), settings, s) for s in shards]
    for shard, job in zip(shards, jobs, strict=True):
        found, results = job.result()
        for name, column in whole[0].items():
            torch.testing.assert_close(found[name], column, rtol=1e-10, atol=1e-10)
        for part, expected in zip(results, whole[1], strict=True):
            own = expected[shard.start : shard.stop] if expected.shape[:1] == (V,) else expected
            torch.testing.assert_close(part, own, rtol=1e-10, atol=1e-10)


SETTINGS = [
    HeadSettings(candidates=4, tile_bytes=TILE),
    HeadSettings(temperature=0.7, sampler_temperature=1.3, candidates=11, tile_bytes=200),
    HeadSettings(temperature=1.6, candidates=3, stop=(9, 2, 5), merge_stop=True, tile_bytes=1),
    HeadSettings(candidates=2, stop=(0, 10), merge_stop=True, tile_bytes=TILE),
]


PARTITIONS = [[0, *inner, V] for parts in range(3) for inner in combinations(range(1, V), parts)]
"""All 56 into at most three parts."""


@pytest.mark.parametrize(
    ("settings", "turns"),
    zip(SETTINGS, [(0, 3, 6), (1,), (4,), (2, 5, 7)], strict=True),
    ids=["plain", "tempered", "merged", "ends"],
)
def test_any_partition_of_the_vocabulary_gives_what_the_whole_gives(settings, turns):
    """Each partition under one of the settings, in turns; ranks that meet unequally often would never end."""
    whole = everything(*models(), settings, None)
    with ThreadPoolExecutor(4) as pool:
        for edges in chain.from_iterable(PARTITIONS[turn::8] for turn in turns):
            assert_cut_is_whole(pool, edges, settings, whole)


def test_whole_rows_can_not_be_paid_by_a_part():
    student, teacher = models()
    shard = VocabShard(0, 6, V, 6)
    pay = RowsPay(OBJECTIVES["uskd"](), torch.ones(N), torch.ones(N))
    with pytest.raises(ValueError, match="whole heads"):
        head_loss(cut(student, shard), cut(teacher, shard), [pay], torch.zeros(N).long(), HeadSettings(), shard=shard)


@pytest.mark.parametrize("counts", [[6], [4, 3], [5, 0, 3], [1, 4, 0, 2]], ids=str)
def test_ranks_with_any_number_of_rows_find_what_one_finds(tmp_path, counts):
    """Real processes over gloo; the last rank keeps none of its rows."""
    rows = sum(counts)
    weight_N = torch.linspace(0.1, 1, rows, dtype=torch.float64)
    weight_N[rows - counts[-1] :] *= len(counts) == 1
    forked(shards.rank, str(tmp_path), counts, weight_N, ranks=len(counts))
    expected = shards.found_by(*shards.models(rows), torch.arange(rows) % shards.V, weight_N, None)
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(len(counts))]
    for name, whole in expected.items():
        parts = [part[name] for part in found]
        together = parts[0] if name.endswith("loss") else torch.cat(parts)
        torch.testing.assert_close(together, whole, rtol=1e-12, atol=1e-12)


def test_more_ranks_than_outcomes_are_refused(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        with pytest.raises(ValueError, match="at least one"):
            RankShard.of_rank(0)
        assert RankShard.of_rank(7) == RankShard(0, 7, 7, 7)
    finally:
        torch.distributed.destroy_process_group()
