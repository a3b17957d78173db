"""Ranks that share sequences give one rank's loss, selection and gradient, and each keeps its share of activations."""

from pathlib import Path

import pytest
import torch
from torch.multiprocessing import start_processes

from opd.distributed import Ranks
from tests import cases
from tests.workers import pieces

pytestmark = pytest.mark.engine
EVERY = [("small", name, 40) for name in cases.LOSSES]


def shared(folder: Path, count: int, size: int, work: list[tuple[str, str, int]]) -> dict:
    """What rank 0 of so many found; forked, for they import nothing twice."""
    start_processes(pieces.rank, (str(folder), count, size, work), nprocs=count, start_method="fork")
    return torch.load(folder / "found.pt")


def assert_as_alone(found: dict, work: list[tuple[str, str, int]]) -> None:
    for models, name, budget in work:
        got, one = found[models, name, budget], pieces.taken(models, name, Ranks(), budget)
        assert got["loss"] == pytest.approx(one["loss"], rel=1e-12), name
        assert cases.same_weights(got["weights"], one["weights"], within=1e-12), name
        assert cases.relative_error(got["grads"], one["grads"]) < 1e-10, name


def test_two_ranks_share_a_rollout_of_2048_tokens(tmp_path: Path):
    """Student and teacher both, of two architectures; what a rank keeps for the backward pass is half of it."""
    work = [("long", "soft_or_batch", 4096), ("long", "soft_or_rollout", 2048), ("adapted", "tsdkd", 40)]
    found = shared(tmp_path, 2, 2, work)
    assert_as_alone(found, work)
    assert found["kept_bytes"] / pieces.kept_bytes(Ranks()) == pytest.approx(0.5, abs=0.01)


def test_two_data_ranks_of_two_pieces_give_every_case_of_one_rank(tmp_path: Path):
    found = shared(tmp_path, 4, 2, EVERY)
    assert_as_alone(found, EVERY)
