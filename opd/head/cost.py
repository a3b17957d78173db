"""What the head costs: rows a tile, peak extra memory. A test holds the engine to the formula."""

LIVE_TILES = 8
"""[n, V] tensors alive at once at the worst moment of a tile: both log-probs, value, slope, their parts, gradient."""


def tile_rows(vocabulary: int, *, itemsize: int, tile_bytes: int) -> int:
    """Rows n of a tile so that all its [n, V] tensors together stay within `tile_bytes` (at least one row)."""
    return max(1, tile_bytes // (LIVE_TILES * vocabulary * itemsize))


def peak_extra_bytes(
    *, rows: int, hidden: int, vocabulary: int, itemsize: int, tile_bytes: int, trains_head: bool
) -> int:
    """Upper bound of the loss's memory beyond its inputs, in bytes.

    tile (n·V·LIVE_TILES) + gradient of the hidden states (rows·H) + gradient of the head (V·H in the working dtype,
    where it trains). No term holds rows·V.
    """
    n = min(rows, tile_rows(vocabulary, itemsize=itemsize, tile_bytes=tile_bytes))
    head = vocabulary * (hidden + 1) * itemsize * (2 if trains_head else 0)
    return n * vocabulary * itemsize * LIVE_TILES + rows * hidden * itemsize + head
