"""Scaling of scores to [0, 1]: what a selector's scope is taken over."""

import torch
from jaxtyping import Float
from torch import Tensor


def min_max(x_C: Float[Tensor, " C"]) -> Float[Tensor, " C"]:
    """(x − min)/(max − min), and 0 everywhere where max = min; one NaN makes all of them NaN.

    >>> min_max(torch.tensor([1.0, 3.0, 2.0])).tolist()
    [0.0, 1.0, 0.5]
    """
    if not len(x_C):
        return x_C
    low, high = x_C.aminmax()
    return torch.zeros_like(x_C) if high == low else (x_C - low) / (high - low)


def clip_at_quantile(x_C: Float[Tensor, " C"], q: float) -> Float[Tensor, " C"]:
    """min(x, its q-quantile), interpolated linearly at position q(n − 1) of the sorted values."""
    if not len(x_C):
        return x_C
    ordered = x_C.sort().values
    place = q * (len(x_C) - 1)
    below = int(place)
    above = min(below + 1, len(x_C) - 1)
    return x_C.clamp_max(ordered[below] + (place - below) * (ordered[above] - ordered[below]))


def scaled_entropy(entropy_C: Float[Tensor, " C"], *, clip: float = 0.98) -> Float[Tensor, " C"]:
    """ĥ: the entropy clipped at its `clip` quantile, then scaled to [0, 1]; TIP, arXiv 2604.14084 v4."""
    return min_max(clip_at_quantile(entropy_C, clip))


def soft_or(h_C: Float[Tensor, " C"], d_C: Float[Tensor, " C"]) -> Float[Tensor, " C"]:
    """1 − (1 − ĥ)(1 − δ̂): exactly 1 where either is, which ĥ + δ̂ − ĥδ̂ loses to rounding.

    >>> soft_or(torch.tensor([0.5, 1.0]), torch.tensor([0.5, 0.3])).tolist()
    [0.75, 1.0]
    """
    return 1 - (1 - h_C) * (1 - d_C)
