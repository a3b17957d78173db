"""What the head costs: every tensor that an operator makes is counted from birth to death, and every product."""

import weakref
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from opd.head.cost import (
    LIVE_TILES,
    TILE_MIB,
    HeadCost,
    HeadShape,
    kept_rows,
    loss_cost,
    rank_bytes,
    statistics_cost,
    strip_columns,
    strip_elements,
    tile_rows,
)
from opd.head.loss import head_loss
from opd.head.pay import ChosenPay, DensePay, Pay, RowsPay
from opd.head.settings import HeadSettings
from opd.head.statistics import MEASURED, STATISTICS, row_statistics, with_normalisers
from opd.head.weights import HeadWeights, HiddenStates
from opd.objectives import OBJECTIVES
from opd.objectives.base import ChosenObjective, Objective, RowsObjective

SHAPE = HeadShape(rows=512, hidden=64, teacher_hidden=96, vocabulary=10_000, tile_bytes=4 << 20)
SMALL_TILE = replace(SHAPE, tile_bytes=2 << 20)
"""Several slabs in every mode."""
ONE_SLAB = replace(SHAPE, rows=300, tile_bytes=150 << 20)
KINDS = {
    "f32": {},
    "f32_frozen": {"trains_head": False},
    "bf16": {"itemsize": 2},
    "bf16_frozen": {"itemsize": 2, "trains_head": False},
}
every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
every_shape = pytest.mark.parametrize("shape", [SHAPE, SMALL_TILE, ONE_SLAB], ids=["slabs", "small_tile", "one_slab"])
EACH = [[cls()] for cls in OBJECTIVES.values()]
OTHERS = [
    [OBJECTIVES["reverse_kl"](teacher_top=5)],
    [OBJECTIVES["skew_kl"](direction="forward")],
    [OBJECTIVES["nkd_non_target"](target="teacher", temperature=2.0)],
    [OBJECTIVES["nkd_target"](), OBJECTIVES["nkd_non_target"]()],
    [OBJECTIVES["plackett_luce"](), OBJECTIVES["jsd"](beta=0.9), OBJECTIVES["entropy"]()],
]
"""Costlier settings, and the papers' recipes of several terms."""


class Allocations(TorchDispatchMode):
    """Bytes of living storages that were born inside, their peak, and the most elements of one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = self.largest = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        for tensor in _tensors((args, kwargs)):
            self._note(tensor.untyped_storage(), 0)
        made = func(*args, **(kwargs or {}))
        for tensor in _tensors(made):
            self._note(tensor.untyped_storage(), tensor.untyped_storage().nbytes())
            self.largest = max(self.largest, tensor.numel())
        return made

    def _note(self, storage, size: int) -> None:
        if storage._cdata in self._known:
            return
        self._known.add(storage._cdata)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, storage._cdata, size)  # an address may be used again

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def _tensors(tree) -> Iterator[Tensor]:
    """torch's own walk over trees knows more kinds of them, and takes longer than the operators."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, (tuple, list, dict)):
        for branch in tree.values() if isinstance(tree, dict) else tree:
            yield from _tensors(branch)


class Moved(TorchDispatchMode):
    """Bytes of heads that products read, and of their gradient, which each reads and writes."""

    def __init__(self, shape: HeadShape) -> None:
        super().__init__()
        self.bytes, self.hidden = 0, shape.hidden
        self.heads = [4 * shape.vocabulary * width for width in (shape.hidden, shape.teacher_hidden)]

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten.mm.out, torch.ops.aten.addmm_.default):
            *sums, left, right = args
            self.bytes += sum(x.nbytes for x in (left, right) if x.untyped_storage().nbytes() in self.heads)
            self.bytes += sum(2 * x.nbytes for x in sums if len(x) != self.hidden)
        return func(*args, **(kwargs or {}))


def counted_flops() -> FlopCounterMode:
    """A counter that knows products into a sum's own memory too."""

    def addmm(sum_, left, right, *_, **__) -> int:
        return 2 * left[0] * left[1] * right[1]

    return FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: addmm})


def states(shape: HeadShape, hidden: int, *, trains: bool = False, **head) -> HiddenStates:
    """Random ones; `head` may ask for a bias."""
    generator = torch.Generator().manual_seed(hidden)
    dtype = {4: torch.float32, 2: torch.bfloat16}[shape.itemsize]
    made = lambda *size: torch.randn(*size, generator=generator).to(dtype)  # noqa: E731
    if "bias_V" in head:
        head["bias_V"] = made(shape.vocabulary).requires_grad_(trains)
    weight_VH = (made(shape.vocabulary, hidden) / 8).requires_grad_(trains)
    return HiddenStates(made(shape.rows, hidden), HeadWeights(weight_VH, **head))


def models(shape: HeadShape, **head) -> tuple[HiddenStates, HiddenStates]:
    """The student's are trained; the teacher's are not."""
    student = states(shape, shape.hidden, trains=shape.trains_head, **head)
    student.hidden_NH.requires_grad_()
    return student, states(shape, shape.teacher_hidden)


def pay_of(objective: Objective, weight_N: Tensor, vocabulary: int) -> Pay:
    """What those rows pay; a chosen objective's ids and slopes are any."""
    if isinstance(objective, ChosenObjective):
        ids_NK = torch.arange(len(weight_N) * 2).reshape(-1, 2) % vocabulary
        return ChosenPay(ids_NK, weight_N[:, None].expand(-1, 2).contiguous())
    if isinstance(objective, RowsObjective):
        return RowsPay(objective, weight_N, torch.ones_like(weight_N))
    return DensePay(objective, weight_N)


def lost(shape: HeadShape, objectives: list[Objective], mode, known: bool = False, weight_N=None, **settings) -> None:
    """Loss and backward under `mode`, every term on the same rows; `known` scores them before."""
    bent = {"bias_V": True, "softcap": 5.0, "scale": 2.0} if settings.pop("bends", False) else {}
    student, teacher = models(shape, **bent)
    weight_N = torch.ones(shape.rows) if weight_N is None else weight_N
    pays = [pay_of(objective, weight_N, shape.vocabulary) for objective in objectives]
    ids_N, settings = torch.zeros(shape.rows, dtype=torch.long), HeadSettings(tile_bytes=shape.tile_bytes, **settings)
    needs = with_normalisers({objective.sums for objective in objectives}) if known else ()
    found = row_statistics(needs, student, teacher, ids_N, settings)
    needs_layer = any(isinstance(objective, RowsObjective) for objective in objectives)
    weak_NH = torch.randn_like(student.hidden_NH).requires_grad_() if needs_layer else None
    with mode:
        head_loss(student, teacher, pays, ids_N, settings, weak_NH, found).backward()


def scored(shape: HeadShape, names, mode, **settings) -> None:
    """Those statistics under `mode`."""
    student, teacher = models(shape)
    ids_N = torch.zeros(shape.rows, dtype=torch.long)
    with mode:
        row_statistics(names, student, teacher, ids_N, HeadSettings(tile_bytes=shape.tile_bytes, **settings))


def peak_of_loss(*args, **settings) -> int:
    allocations = Allocations()
    lost(*args, allocations, **settings)
    return allocations.peak


def assert_predicted(cost: HeadCost, peak: int) -> None:
    assert 0.85 < cost.peak_extra_bytes / peak < 1.15


@every_kind
@every_shape
@pytest.mark.parametrize("name", ["reverse_kl", "jsd"])
def test_where_products_are_kept_the_peak_is_the_formulas(shape, kind, name):
    shape = replace(shape, **kind)
    assert_predicted(loss_cost(shape, "kept"), peak_of_loss(shape, [OBJECTIVES[name]()]))


@every_kind
@every_shape
@pytest.mark.parametrize("names", [["reverse_kl"], ["entropy"], ["forward_kl", "reverse_kl"]], ids="+".join)
def test_where_sums_are_known_the_peak_is_the_formulas(shape, kind, names):
    shape, objectives = replace(shape, **kind), [OBJECTIVES[name]() for name in names]
    cost = loss_cost(shape, "streamed", reads_teacher=any(objective.reads_teacher for objective in objectives))
    assert_predicted(cost, peak_of_loss(shape, objectives, known=True))


@every_shape
@pytest.mark.parametrize("itemsize", [4, 2])
@pytest.mark.parametrize("names", [["student_entropy"], ["reverse_kl", "student_entropy"], MEASURED], ids=len)
def test_the_peak_of_statistics_is_the_formulas(shape, itemsize, names):
    shape, allocations = replace(shape, itemsize=itemsize), Allocations()
    scored(shape, names, allocations)
    assert_predicted(statistics_cost(shape, reads_teacher=len(names) > 1), allocations.peak)


@pytest.mark.parametrize("settings", [{"bends": True}, {"bends": True, "itemsize": 2}, {"precision": "fast"}], ids=str)
@pytest.mark.parametrize(("name", "known"), [("jsd", False), ("reverse_kl", True), ("entropy", True)])
def test_what_the_formula_leaves_out_takes_a_few_strips(name, known, settings):
    """Capped logits, and products that are rounded before they are summed."""
    shape = replace(SHAPE, trains_head=False, itemsize=settings.pop("itemsize", 2 if "precision" in settings else 4))
    cost = loss_cost(shape, "streamed" if known else "kept", reads_teacher=name != "entropy")
    strip = 4 * strip_elements(itemsize=4, tile_bytes=shape.tile_bytes)
    assert peak_of_loss(shape, [OBJECTIVES[name]()], known=known, **settings) < cost.peak_extra_bytes + 4 * strip


@pytest.mark.parametrize("kind", [{}, {"trains_head": False}, {"itemsize": 2, "trains_head": False}], ids=str)
@pytest.mark.parametrize("objectives", EACH + OTHERS, ids=lambda os: "+".join(o.type for o in os))
@pytest.mark.parametrize(
    "shape",
    [
        HeadShape(192, 16, 16, 256, tile_bytes=24 * 256 * 4 * LIVE_TILES),
        HeadShape(12, 16, 16, 2048, tile_bytes=24 * 256 * 4 * LIVE_TILES),
        HeadShape(2, 64, 64, 16, tile_bytes=1),
    ],
    ids=["many_rows", "large_vocabulary", "large_head"],
)
def test_whole_rows_stay_within_the_formula(shape, objectives, kind):
    """Every objective, an end class and a temperature, with whole rows or without."""
    shape = replace(shape, **kind)
    bound = max(loss_cost(shape, mode).peak_extra_bytes for mode in ("kept", "tiles"))
    settings = {"temperature": 1.5, "stop": (2, 5), "merge_stop": True, "bends": True}
    assert peak_of_loss(shape, objectives, **settings) <= bound


@pytest.mark.parametrize(("name", "known"), [("jsd", False), ("reverse_kl", True)])
def test_the_peak_beside_the_heads_gradient_does_not_grow_with_the_vocabulary(name, known):
    peaks = []
    for vocabulary in (2_500, 5_000, 10_000):
        shape = replace(SHAPE, vocabulary=vocabulary, tile_bytes=5 << 20)
        gradient = 4 * vocabulary * shape.hidden
        peaks.append(peak_of_loss(shape, [OBJECTIVES[name]()], known=known) - gradient)
    assert max(peaks) < 1.1 * min(peaks)


@pytest.mark.parametrize("known", [False, True])
def test_no_tensor_of_all_rows_and_tokens_is_ever_made(known):
    shape = HeadShape(192, 16, 16, 2048, tile_bytes=1 << 18)
    objectives = [OBJECTIVES["reverse_kl"]()] if known else [objective for (objective,) in EACH]
    loss, score = Allocations(), Allocations()
    lost(shape, objectives, loss, known=known)
    scored(shape, STATISTICS, score, candidates=3)
    most = shape.rows * shape.vocabulary / 8
    assert max(loss.largest, score.largest) <= max(most, shape.hidden * shape.vocabulary)


FEW_N = (torch.arange(SHAPE.rows) % 8 == 0).float()


@pytest.mark.parametrize(("name", "known"), [("jsd", False), ("reverse_kl", True)])
def test_memory_falls_with_the_retained_rows(name, known):
    shape, objectives = replace(SHAPE, trains_head=False, tile_bytes=150 << 20), [OBJECTIVES[name]()]
    whole, part = Allocations(), Allocations()
    lost(shape, objectives, whole, known=known)
    lost(shape, objectives, part, known=known, weight_N=FEW_N)
    assert part.largest * (1.9 if known else 8) <= whole.largest and part.peak * 1.5 < whole.peak
    cost = loss_cost(shape, "streamed" if known else "kept", share=1 / 8)
    assert_predicted(cost, part.peak)


@every_kind
@pytest.mark.parametrize("share", [1, 8])
@pytest.mark.parametrize(("name", "known"), [("reverse_kl", False), ("jsd", False), ("reverse_kl", True)])
def test_products_of_a_loss_are_those_of_its_rows(name, known, share, kind):
    shape, counter = replace(SMALL_TILE, vocabulary=5_000, **kind), counted_flops()
    weight_N = FEW_N if share == 8 else None
    lost(shape, [OBJECTIVES[name]()], counter, known=known, weight_N=weight_N)
    cost = loss_cost(shape, "streamed" if known else "kept", share=1 / share)
    assert counter.get_total_flops() == pytest.approx(cost.flops, rel=0.02)


def test_no_teacher_is_multiplied_for_an_entropy():
    shape, counter = replace(SMALL_TILE, vocabulary=5_000), counted_flops()
    lost(shape, [OBJECTIVES["entropy"]()], counter)
    assert counter.get_total_flops() == pytest.approx(loss_cost(shape, "kept", reads_teacher=False).flops, rel=0.02)


@pytest.mark.parametrize("reads_teacher", [True, False])
def test_statistics_take_one_product_of_each_model(reads_teacher):
    shape, counter = replace(SMALL_TILE, vocabulary=5_000), counted_flops()
    scored(shape, STATISTICS if reads_teacher else ["student_entropy"], counter, candidates=3, sampler_temperature=0.7)
    cost = statistics_cost(shape, reads_teacher=reads_teacher)
    assert counter.get_total_flops() == pytest.approx(cost.flops, rel=0.02)


@pytest.mark.parametrize("trains_head", [True, False])
@pytest.mark.parametrize("share", [1, 8])
def test_bytes_are_those_that_products_move(share, trains_head):
    shape = replace(SMALL_TILE, vocabulary=5_000, trains_head=trains_head)
    loss, score = Moved(shape), Moved(shape)
    lost(shape, [OBJECTIVES["reverse_kl"]()], loss, known=True, weight_N=FEW_N if share == 8 else None)
    scored(shape, ["reverse_kl"], score)
    assert loss.bytes == loss_cost(shape, "streamed", share=1 / share).bytes
    assert score.bytes == statistics_cost(shape).bytes


@pytest.mark.parametrize("tile_bytes", [1, 10**4, 10**6])
def test_a_tile_takes_as_many_rows_as_fit_and_at_least_one(tile_bytes):
    n = tile_rows(256, itemsize=4, tile_bytes=tile_bytes)
    assert n >= 1 and (n == 1 or n * 256 * 4 * LIVE_TILES <= tile_bytes)
    assert (n + 1) * 256 * 4 * LIVE_TILES > tile_bytes


@pytest.mark.parametrize("tile_bytes", [1, 10**4, 10**6, 10**8])
@pytest.mark.parametrize("vocabulary", [7, 256, 150_000])
def test_kept_products_fit_in_the_tile_in_rows_of_sixteen(vocabulary, tile_bytes):
    n = kept_rows(vocabulary, itemsize=4, tile_bytes=tile_bytes)
    assert n == 1 or 2 * n * vocabulary * 4 <= tile_bytes
    assert n < 16 or n % 16 == 0
    assert 2 * (n + 16) * vocabulary * 4 > tile_bytes


@pytest.mark.parametrize("mode", ["streamed", "kept"])
def test_on_a_gpu_a_large_micro_batch_takes_few_strips(mode):
    """Each is a dozen kernels to launch: thousands would take seconds where the products take a tenth of one."""
    tile_bytes = TILE_MIB["cuda"] << 20
    shape = HeadShape(16_384, 2048, 4096, 151_936, itemsize=2, trains_head=False, tile_bytes=tile_bytes, device="cuda")
    n = shape.slab(mode)
    columns = strip_columns(n, itemsize=4, tile_bytes=tile_bytes, device="cuda")
    assert -(-shape.rows // n) * -(-shape.vocabulary // columns) <= 100
    assert loss_cost(shape, mode).peak_extra_bytes < 3 * tile_bytes


@pytest.mark.parametrize("rows", [1, 300, 10**6])
@pytest.mark.parametrize("tile_bytes", [1, 10**6, 10**9])
def test_a_strip_takes_an_eighth_of_the_tile_and_at_least_a_column(rows, tile_bytes):
    v = strip_columns(rows, itemsize=4, tile_bytes=tile_bytes)
    assert v == 1 or 8 * v * rows * 4 <= tile_bytes


def test_the_largest_part_of_a_head_that_is_cut_has_what_is_left_over():
    uneven, even = (replace(SHAPE, vocabulary=size, trains_head=False) for size in (10, 12))
    assert rank_bytes(uneven, 4) == rank_bytes(even, 4) < rank_bytes(uneven, 3)
