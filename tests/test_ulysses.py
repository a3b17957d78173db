"""Ranks that share sequences give one rank's loss, selection and gradient, and each keeps its share of activations."""

from pathlib import Path

import pytest
import torch

from opd.distributed import Ranks
from tests import cases
from tests.launching import forked
from tests.test_architectures import FAMILIES
from tests.workers import pieces

pytestmark = pytest.mark.engine
CASES = ("all", "soft_or_batch", "soft_or_rollout", "three_terms", "uskd", "d3s_by_ratio", "tgdpo")
"""One pass and two, choices over a rollout and over the batch, draws, a middle layer, late rollouts, a reference."""


def shared(folder: Path, count: int, work: list[pieces.Work]) -> dict:
    """What rank 0 of so many found, and that it is what one rank finds."""
    forked(pieces.rank, str(folder), count, work, ranks=count)
    found = torch.load(folder / "found.pt")
    for size, models, name, budget in work:
        got, one = found[size, models, name, budget], pieces.taken(models, name, Ranks(), budget)
        assert got["loss"] == pytest.approx(one["loss"], rel=1e-12), name
        assert cases.same_weights(got["weights"], one["weights"], within=1e-12), name
        assert cases.relative_error(got["grads"], one["grads"]) < 1e-10, name
    return found


def test_two_ranks_share_a_rollout_of_2048_tokens(tmp_path: Path):
    """Student and teacher both, of two architectures; half the activations stay, and attention's output once more."""
    long = [(2, "long", "soft_or_batch", 4096), (2, "long", "soft_or_rollout", 2048)]
    left = shared(tmp_path, 2, [*long, (2, "adapted", "tsdkd", 40), (2, "checkpointed", "soft_or_batch", 40)])
    layers, width, itemsize = 2, 16, 8
    expected = (pieces.kept_bytes(Ranks()) + layers * pieces.LONG * width * itemsize) / 2
    assert left["kept_bytes"] == pytest.approx(expected, rel=0.01)
    refused = {name: words for name, words in left["complaints"].items() if words is not None}
    assert refused.keys() == {"rolling", "gemma3", "gemma4", "qwen3.5"}, (
        "a window that wants a mask, a state along the sequence"
    )
    assert left["complaints"].keys() == {"rolling", *FAMILIES} - {"gemma2"}, "gemma2 is refused for its kernel"
    for words in refused.values():
        assert "'student': hidden states change when 2 ranks share a sequence" in words and "\n" not in words


def test_two_by_two_ranks_and_more_ranks_than_key_value_heads(tmp_path: Path):
    """Two data ranks of two pieces each, a teacher's head cut among them; two key-value heads on four pieces."""
    both_ways = [(2, "by_vocabulary", "soft_or_batch", 40), (4, "long", "soft_or_rollout", 2048)]
    shared(tmp_path, 4, [*((2, "small", name, 40) for name in CASES), *both_ways])
