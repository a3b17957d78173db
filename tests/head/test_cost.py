"""The head's memory: every tensor that an operator makes is counted from its birth to its death."""

import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from opd.head.cost import LIVE_TILES, peak_extra_bytes, tile_rows
from opd.head.loss import ChosenPay, DensePay, Pay, RowsPay, head_loss
from opd.head.statistics import STATISTICS
from opd.head.tile import HeadSettings
from opd.head.weights import HeadWeights, HiddenStates
from opd.objectives import OBJECTIVES
from opd.objectives.base import ChosenObjective, Objective, RowsObjective
from tests.build import statistics

N, H, V = 192, 16, 256
TILE_BYTES = 24 * V * 4 * LIVE_TILES


class Allocations(TorchDispatchMode):
    """Bytes of living storages that were born inside, their peak, and the most elements of one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = self.largest = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        for tensor in _tensors((args, kwargs)):
            self._known.add(tensor.untyped_storage()._cdata)
        made = func(*args, **(kwargs or {}))
        for tensor in _tensors(made):
            self._note(tensor.untyped_storage())
            self.largest = max(self.largest, tensor.numel())
        return made

    def _note(self, storage) -> None:
        if storage._cdata in self._known:
            return
        self._known.add(storage._cdata)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, storage._cdata, storage.nbytes())

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def _tensors(tree) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def made_states(
    dtype: torch.dtype, *, trains_head: bool = False, rows: int = N, vocabulary: int = V, hidden: int = H
) -> HiddenStates:
    head = HeadWeights(
        torch.randn(vocabulary, hidden, dtype=dtype).requires_grad_(trains_head),
        torch.randn(vocabulary, dtype=dtype).requires_grad_(trains_head),
        softcap=5.0,
        scale=2.0,
    )
    return HiddenStates(torch.randn(rows, hidden, dtype=dtype).requires_grad_(), head)


def pay_of(objective: Objective, weight_N: torch.Tensor) -> Pay:
    """What those rows pay; a chosen objective's ids and slopes are any."""
    if isinstance(objective, ChosenObjective):
        ids_NK = torch.arange(len(weight_N) * 2).reshape(-1, 2) % V
        return ChosenPay(ids_NK, weight_N[:, None].expand(-1, 2).contiguous())
    if isinstance(objective, RowsObjective):
        return RowsPay(objective, weight_N, torch.ones_like(weight_N))
    return DensePay(objective, weight_N)


def measured(
    student: HiddenStates, objectives: list[Objective], weight_N: torch.Tensor, tile_bytes: int, stop: tuple = ()
) -> Allocations:
    """The allocations of loss and backward with those terms, every term on the same rows."""
    teacher = made_states(student.hidden_NH.dtype, rows=len(student), vocabulary=student.head.vocabulary)
    teacher = HiddenStates(teacher.hidden_NH.detach(), teacher.head)
    needs_layer = any(isinstance(objective, RowsObjective) for objective in objectives)
    weak_NH = torch.randn_like(student.hidden_NH).requires_grad_() if needs_layer else None
    pays = [pay_of(objective, weight_N) for objective in objectives]
    ids_N = torch.zeros(len(student), dtype=torch.long)
    settings = HeadSettings(temperature=1.5, tile_bytes=tile_bytes, stop=stop, merge_stop=True)
    with Allocations() as allocations:
        head_loss(student, teacher, pays, ids_N, settings, weak_NH).backward()
    return allocations


def made(name: str, **settings) -> Objective:
    return OBJECTIVES[name](**settings)


EACH = [[cls()] for cls in OBJECTIVES.values()]
OTHERS = [
    [made("reverse_kl", teacher_top=5)],
    [made("skew_kl", direction="forward")],
    [made("nkd_non_target", target="teacher", temperature=2.0)],
    [made("nkd_target"), made("nkd_non_target")],
    [made("plackett_luce"), made("jsd", beta=0.9), made("entropy")],
]
"""Costlier settings, and the papers' recipes of several terms."""


@pytest.mark.parametrize(
    ("dtype", "trains_head"), [(torch.float32, True), (torch.float32, False), (torch.bfloat16, False)], ids=str
)
@pytest.mark.parametrize("objectives", EACH + OTHERS, ids=lambda os: "+".join(o.type for o in os))
@pytest.mark.parametrize(
    ("rows", "vocabulary", "hidden", "tile_bytes"),
    [(N, V, H, TILE_BYTES), (12, 8 * V, H, TILE_BYTES), (2, V, 4 * H, 1)],
    ids=["many_rows", "large_vocabulary", "large_head"],
)
def test_loss_and_gradient_stay_within_the_formula(
    dtype, trains_head, objectives, rows, vocabulary, hidden, tile_bytes
):
    student = made_states(dtype, trains_head=trains_head, rows=rows, vocabulary=vocabulary, hidden=hidden)
    bound = peak_extra_bytes(
        rows=rows, hidden=hidden, vocabulary=vocabulary, itemsize=4, tile_bytes=tile_bytes, trains_head=trains_head
    )
    assert measured(student, objectives, torch.ones(rows), tile_bytes, stop=(2, 5)).peak <= bound


def test_the_formula_is_not_far_above_what_is_used():
    bound = peak_extra_bytes(rows=N, hidden=H, vocabulary=V, itemsize=4, tile_bytes=TILE_BYTES, trains_head=True)
    student = made_states(torch.float32, trains_head=True)
    assert measured(student, [OBJECTIVES["jsd"]()], torch.ones(N), TILE_BYTES).peak > bound / 2


def test_no_tensor_of_all_rows_and_tokens_is_ever_made():
    student, teacher = made_states(torch.float32, trains_head=True), made_states(torch.float32)
    loss = measured(student, [objective for (objective,) in EACH], torch.ones(N), TILE_BYTES)
    with Allocations() as scored:
        statistics(student, teacher, STATISTICS, tile_bytes=TILE_BYTES)
    n = tile_rows(V, itemsize=4, tile_bytes=TILE_BYTES)
    assert max(loss.largest, scored.largest) <= n * (V + 1) < N * V / 4
    assert scored.peak <= TILE_BYTES + 2 * N * 4 * 3 * len(STATISTICS)


def test_memory_and_work_fall_with_the_retained_rows():
    few = (torch.arange(N) % 8 == 0).float()
    student, objective = made_states(torch.float32), OBJECTIVES["reverse_kl"]()
    whole, part = (measured(student, [objective], weight_N, 1 << 40) for weight_N in (torch.ones(N), few))
    assert whole.largest == N * V and part.largest == N * V // 8
    assert part.peak < whole.peak / 4


@pytest.mark.parametrize("tile_bytes", [1, 10**4, 10**6])
def test_a_tile_takes_as_many_rows_as_fit_and_at_least_one(tile_bytes):
    n = tile_rows(V, itemsize=4, tile_bytes=tile_bytes)
    assert n >= 1 and (n == 1 or n * V * 4 * LIVE_TILES <= tile_bytes)
    assert (n + 1) * V * 4 * LIVE_TILES > tile_bytes
