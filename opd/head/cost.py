"""What the head costs: how rows and columns are cut, floating-point operations, bytes moved, peak extra memory.

A test holds the engine to the memory formula within 15 %.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

STRIP_ELEMENTS = {"cpu": 1 << 21, "cuda": 1 << 25}
"""Logits of one strip at most: 8 MiB in float32, which several caches hold; on a GPU, where each strip is a dozen
kernels to launch, 128 MiB."""
STRIP_COLUMNS = {"cpu": 4096, "cuda": 1 << 15}
"""Columns of a strip at most, however few the rows."""
TILE_MIB = {"cpu": 150, "cuda": 1024}
"""Working memory, unless a recipe says another."""
STRIPS_IN_A_TILE = 8
"""A strip takes at most so small a part of `tile_bytes`."""
BLOCKS_A_STRIP = 8
"""Elementwise work goes block by block: a MiB in float32, so that a few tensors of it stay in the cache."""
BLOCK_TENSORS = {"streamed": 7, "kept": 9}
"""Tensors of a block's size alive at once at the worst moment of a loss. Measured: forward KL 7, JSD 9."""
SUMS_TENSORS = 3
"""The same of statistics, for each model."""
LEAST_COLUMNS = {"cpu": 256, "cuda": 2048}
"""Of a strip over the most rows that go through the strips together (`streamed_rows`)."""
MOST_PARTS = 16
"""Sums of blocks are merged so many at a time."""
LIVE_TILES = 16
"""[n, V] tensors alive at once at the worst moment of a tile of whole rows. Measured: USKD 14.5."""

Mode = Literal["streamed", "kept", "tiles"]
"""streamed: sums known, one sweep for all rows. kept: products of a slab are kept between its sweeps. tiles: whole
rows, for objectives that need them."""


def tile_bytes_of(mib: int | None, device: str) -> int:
    """Working memory in bytes, as a recipe says it or by the device's type."""
    return (mib or TILE_MIB[device]) << 20


def strip_elements(*, itemsize: int, tile_bytes: int, device: str = "cpu") -> int:
    """Logits of a strip, at most. device: its type."""
    return max(1, min(STRIP_ELEMENTS[device], tile_bytes // (STRIPS_IN_A_TILE * itemsize)))


def strip_columns(rows: int, *, itemsize: int, tile_bytes: int, device: str = "cpu") -> int:
    """Columns of a strip over so many rows."""
    most = strip_elements(itemsize=itemsize, tile_bytes=tile_bytes, device=device)
    return max(1, min(STRIP_COLUMNS[device], most // max(1, rows)))


def streamed_rows(*, itemsize: int, tile_bytes: int, device: str = "cpu") -> int:
    """Rows that go through the strips together where nothing is kept between sweeps."""
    return max(1, strip_elements(itemsize=itemsize, tile_bytes=tile_bytes, device=device) // LEAST_COLUMNS[device])


def kept_rows(vocabulary: int, *, itemsize: int, tile_bytes: int) -> int:
    """Rows whose products of both models are kept between sweeps: a multiple of 16 where there are as many, at least 1.

    Matrix products over n rows are a fifth slower where 16 doesn't divide n (measured: 103 against 112).
    """
    most = max(1, tile_bytes // (2 * vocabulary * itemsize))
    return most if most < 16 else most // 16 * 16


def tile_rows(vocabulary: int, *, itemsize: int, tile_bytes: int) -> int:
    """Rows n of a tile of whole rows so that all its [n, V] tensors stay within `tile_bytes`; at least one."""
    return max(1, tile_bytes // (LIVE_TILES * vocabulary * itemsize))


@dataclass(frozen=True)
class HeadShape:
    """What the cost depends on.

    rows: N. hidden, teacher_hidden: Hs, Ht. vocabulary: V of both heads; a rank of R holds V / R of it where heads are
    sharded by vocabulary. itemsize: of the weights. trains_head: dW is wanted. device: its type.
    """

    rows: int
    hidden: int
    teacher_hidden: int
    vocabulary: int
    itemsize: int = 4
    trains_head: bool = True
    tile_bytes: int = TILE_MIB["cpu"] << 20
    device: str = "cpu"

    @property
    def working(self) -> int:
        """Bytes of a number that sums are kept in."""
        return max(4, self.itemsize)

    def slab(self, mode: Mode) -> int:
        """Rows that are worked on at once."""
        size = {"itemsize": self.working, "tile_bytes": self.tile_bytes}
        by_mode = {
            "streamed": streamed_rows(**size, device=self.device),
            "kept": kept_rows(self.vocabulary, **size),
            "tiles": tile_rows(self.vocabulary, **size),
        }
        return min(self.rows, by_mode[mode])


@dataclass(frozen=True)
class HeadCost:
    """flops: of matrix products. bytes: of weights, their gradient and kept products, moved between memory and cache.

    peak_extra_bytes: beyond the inputs, at the worst moment of forward and backward.
    """

    flops: float
    bytes: float
    peak_extra_bytes: float


def statistics_cost(shape: HeadShape, *, reads_teacher: bool = True) -> HeadCost:
    """`row_statistics` of N rows: 2NV(Hs + Ht) operations, the weights once for each block of rows."""
    widths = shape.hidden + (shape.teacher_hidden if reads_teacher else 0)
    blocks = -(-shape.rows // max(1, shape.slab("streamed")))
    models, columns = 2 if reads_teacher else 1, 8 * shape.rows
    return HeadCost(
        flops=2.0 * shape.rows * shape.vocabulary * widths,
        bytes=float(blocks * shape.vocabulary * widths * shape.itemsize),
        peak_extra_bytes=float(columns + _sweep_bytes(shape, "streamed", models=models, of_loss=False)),
    )


def loss_cost(shape: HeadShape, mode: Mode, *, share: float = 1.0, reads_teacher: bool = True) -> HeadCost:
    """`head_loss` and its backward where a share ρ of N rows pays: 2ρNV(3Hs + Ht) operations, 2Hs if frozen."""
    paying = replace(shape, rows=round(share * shape.rows))
    V, n, slabs = shape.vocabulary, paying.rows, -(-paying.rows // max(1, paying.slab(mode)))
    gradient, teacher = V * shape.hidden * shape.trains_head, shape.teacher_hidden * reads_teacher
    products = 2 * V * n * shape.working * (0 if mode == "streamed" else 3)
    gradients = (shape.rows * shape.hidden + gradient + V * shape.trains_head) * shape.working
    working = _sweep_bytes(paying, mode, models=2 if reads_teacher else 1, of_loss=True)
    return HeadCost(
        flops=2.0 * n * V * ((3 if shape.trains_head else 2) * shape.hidden + teacher),
        bytes=float(
            slabs * (V * (2 * shape.hidden + teacher) * shape.itemsize + 2 * gradient * shape.working) + products
        ),
        peak_extra_bytes=float(gradients + working),
    )


def rank_bytes(shape: HeadShape, ranks: int = 1) -> int:
    """What the teacher's head and a loss over it, with its backward, hold on each of R ranks that share heads.

    The head's V / R rows, and `loss_cost`'s peak over the tokens of all ranks, of which the gradient of hidden states
    is there of the rank's own N alone. With several ranks, the backward may be the worse moment: the gradient of the
    rank's part of the student's head is then there once more, as one of the whole head.
    """
    part = replace(shape, rows=ranks * shape.rows, vocabulary=-(-shape.vocabulary // ranks))
    elsewhere = (part.rows - shape.rows) * shape.hidden * shape.working
    forward = round(loss_cost(part, "streamed").peak_extra_bytes) - elsewhere
    whole = shape.vocabulary * shape.hidden * shape.itemsize
    own = (shape.rows + part.vocabulary * shape.trains_head) * shape.hidden * shape.working
    backward = own + whole if ranks > 1 and shape.trains_head else own
    return part.vocabulary * shape.teacher_hidden * shape.itemsize + max(forward, backward)


def _sweep_bytes(shape: HeadShape, mode: Mode, *, models: int, of_loss: bool) -> int:
    """Working memory of the rows that are worked on at once: states, products, and the worst of three moments.

    Those are a product (the strip's 16-bit weights are there in float32 too; the last rows' strips are the widest), a
    block, and a merge of blocks' sums.
    """
    n, device = shape.slab(mode), shape.device
    size = {"itemsize": shape.working, "tile_bytes": shape.tile_bytes, "device": device}
    widths = shape.hidden + shape.teacher_hidden * (models - 1)
    is_narrow = shape.itemsize != shape.working and device == "cpu"  # a GPU multiplies 16-bit factors as they are
    states = n * (widths * (shape.itemsize + shape.working * is_narrow) + shape.hidden * shape.working * of_loss)
    column = max(shape.hidden, shape.teacher_hidden * (models - 1)) * shape.working * is_narrow
    if mode == "tiles":
        return (
            states
            + n * shape.vocabulary * LIVE_TILES * shape.working
            + min(shape.vocabulary, STRIP_COLUMNS[device]) * column
        )
    v, widest = (min(shape.vocabulary, strip_columns(rows, **size)) for rows in (n, shape.rows % max(1, n) or n))
    strips = states + models * n * (shape.vocabulary if mode == "kept" else v) * shape.working
    if of_loss and device != "cpu":  # there each product of the gradient is made apart from its sum
        strips += max(v, n) * shape.hidden * shape.working
    tensors = BLOCK_TENSORS[mode] if of_loss else SUMS_TENSORS * models
    moments = (
        widest * column,
        tensors * min(v * n, strip_elements(**size) // (BLOCKS_A_STRIP if device == "cpu" else 1)) * shape.working,
        0 if of_loss and mode == "streamed" else _merge_bytes(n, models),
    )
    return strips + max(moments)


def _merge_bytes(rows: int, models: int) -> int:
    """Merging blocks' sums, float64: all sums twice, shift and scale of each model, two products of them.

    Sums: maximum and Σe^x of each model, and at most one entropy, or both and both KLs.
    """
    sums = 2 * models + (4 if models == 2 else 1)
    return MOST_PARTS * rows * 8 * (2 * sums + 2 * models + 2)
