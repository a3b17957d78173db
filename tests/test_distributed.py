"""Real DeepSpeed ranks: one rank ≡ two, ZeRO 0 ≡ 2 ≡ 3, ≡ plain autograd; and a non-finite step changes nothing."""

from pathlib import Path

import pytest
import torch

from tests import cases, reference
from tests.launching import accelerate

pytestmark = pytest.mark.engine


def work(tmp: Path, task: str, precision: str, *, ranks: int, stage: int) -> None:
    done = accelerate(tmp, "tests.workers.ranks", task, precision, str(tmp), ranks=ranks, stage=stage)
    assert done.returncode == 0, done.stderr[-3000:]


def reference_step(share: float | None) -> tuple[float, dict[str, torch.Tensor]]:
    plain, teacher = cases.model(1, hidden=16, tied=True), cases.model(2, hidden=24)
    loss = reference.reverse_kl_loss(plain, teacher, cases.rollouts(), soft_or_share=share)
    loss.backward()
    return loss.item(), {name: p.grad for name, p in plain.named_parameters()}


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tmp = tmp_path_factory.mktemp("one")
    work(tmp, "gradients", "fp64", ranks=1, stage=0)
    return tmp


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tmp = tmp_path_factory.mktemp("two")
    work(tmp, "gradients", "fp64", ranks=2, stage=0)
    return tmp


@pytest.mark.parametrize("world", ["one_rank", "two_ranks"])
@pytest.mark.parametrize(("name", "share"), [("all", None), ("soft_or_batch", 0.5)])
@pytest.mark.parametrize("budget", [40, 4096])
def test_a_step_under_deepspeed_equals_plain_autograd_in_float64(world, name, share, budget, request):
    found = torch.load(request.getfixturevalue(world) / f"{name}-{budget}.pt")
    loss, expected = reference_step(share)
    assert abs(found["loss"] - loss) < 1e-9
    assert cases.relative_error(found["grads"], expected) < 1e-6


@pytest.mark.parametrize("stage", [2, 3])
def test_two_sharded_ranks_equal_one_rank(stage: int, one_rank: Path, tmp_path: Path):
    work(tmp_path, "gradients", "fp32", ranks=2, stage=stage)
    for name in cases.LOSSES:
        for budget in (40, 4096):
            got, one = (torch.load(folder / f"{name}-{budget}.pt") for folder in (tmp_path, one_rank))
            assert got["head_is_whole"] is (stage != 3), "ZeRO-3 must shard the head, or this shows nothing"
            assert got["loss"] == pytest.approx(one["loss"], rel=1e-5)
            expected = {k: v.float() for k, v in one["grads"].items()}
            assert cases.relative_error({k: v.float() for k, v in got["grads"].items()}, expected) < 1e-5
            assert all(torch.equal(a, b.to(a)) for a, b in zip(got["weights"], one["weights"], strict=True))
    got, one = (torch.load(folder / "soft_or_batch-1.pt") for folder in (tmp_path, one_rank))
    expected = {k: v.float() for k, v in one["grads"].items()}
    assert cases.relative_error(got["grads"], expected) < 1e-5, "a rank without a rollout"


@pytest.mark.parametrize(("stage", "ranks"), [(1, 1), (2, 2), (3, 2)])
def test_bf16_micro_batches_add_up_to_the_same_gradient(stage: int, ranks: int, tmp_path: Path):
    work(tmp_path, "gradients", "bf16", ranks=ranks, stage=stage)
    for name in cases.LOSSES:
        many, one = (torch.load(tmp_path / f"{name}-{budget}.pt") for budget in (40, 4096))
        assert many["loss"] == pytest.approx(one["loss"], rel=0.01)
        if all(torch.equal(a, b) for a, b in zip(many["weights"], one["weights"], strict=True)):
            grads = ({k: v.float() for k, v in found["grads"].items()} for found in (many, one))
            assert cases.relative_error(*grads) < 0.05


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_step_that_is_not_finite_on_one_rank_changes_nothing_on_any(stage: int, precision: str, tmp_path: Path):
    work(tmp_path, "nonfinite", precision, ranks=2, stage=stage)
    found = torch.load(tmp_path / "nonfinite.pt")
    assert [found[i]["skipped"] for i in range(5)] == [False, True, True, False, False]
    for before, after, same in [(0, 1, True), (1, 2, True), (2, 3, False), (3, 4, True)]:
        pairs = zip(found[before]["weights"].values(), found[after]["weights"].values(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs) is same
    assert all(bool(torch.isfinite(w).all()) for w in found[3]["weights"].values())
    moved = max(float((found[0]["weights"][k] - w).abs().max()) for k, w in found["start"].items())
    assert 0 < moved < 0.02, "Adam's first step moves a weight by the step's learning rate, 1e-3, and bf16's rounding"
