"""Every random draw has a name: a seed is keyed by what it is for, never by when or where it is drawn."""

import hashlib

import torch


def seed_for(*key: int | str) -> int:
    """A seed in [0, 2⁶³) that depends on the whole key, and on nothing else.

    >>> seed_for("rollout", 0, 3) == seed_for("rollout", 0, 3) != seed_for("rollout", 3, 0)
    True
    """
    digest = hashlib.sha256(repr(key).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator_for(*key: int | str) -> torch.Generator:
    """A CPU generator seeded by `seed_for(*key)`."""
    return torch.Generator().manual_seed(seed_for(*key))
