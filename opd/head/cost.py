"""What the head costs: rows a tile, peak extra memory. A test holds the engine to the formula."""

LIVE_TILES = 16
"""[n, V] tensors alive at once at the worst moment of a tile. Measured: both KLs 8.3, JSD and TSD-KD's three terms
10.3, skewed KL 11, USKD 14.5, one of each objective together 16."""


def tile_rows(vocabulary: int, *, itemsize: int, tile_bytes: int) -> int:
    """Rows n of a tile so that all its [n, V] tensors together stay within `tile_bytes` (at least one row)."""
    return max(1, tile_bytes // (LIVE_TILES * vocabulary * itemsize))


def peak_extra_bytes(
    *, rows: int, hidden: int, vocabulary: int, itemsize: int, tile_bytes: int, trains_head: bool
) -> int:
    """Upper bound of the memory of the loss and its backward beyond their inputs, in bytes.

    tile (n·V·LIVE_TILES, and n·H for its states and theirs) + twice the gradient of the hidden states (rows·H: before
    and after the backward's scale) and the rows' numbers + twice the gradient of the head (V·(H + 1) in the working
    dtype, where it trains: the sum and a tile's part, later before and after the scale). No term holds rows·V.
    itemsize: of the working dtype, `opd.head.weights.working_dtype`.
    """
    n = min(rows, tile_rows(vocabulary, itemsize=itemsize, tile_bytes=tile_bytes))
    tile = n * (vocabulary * LIVE_TILES + 2 * hidden) * itemsize
    states = 2 * rows * hidden * itemsize + 16 * rows
    head = 2 * vocabulary * (hidden + 1) * itemsize if trains_head else 0
    return tile + states + head
