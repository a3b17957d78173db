"""Real DeepSpeed ranks: one ≡ two ≡ four, ZeRO 0 ≡ 1 ≡ 2 ≡ 3, ≡ plain autograd; a non-finite step changes nothing.

What a step does to the optimizer (clipping, decay) and what is exported are read off real steps.
"""

import os
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM

from opd import distributed
from tests import cases
from tests.launching import ROOT, accelerate, stage_file
from tests.workers.pieces import LONG, long_rollouts
from tests.workers.ranks import BF16, OPTIMIZER

pytestmark = pytest.mark.engine
BUDGETS = (40, 4096)
OFFLOAD = ROOT / "launch" / "deepspeed" / "zero3-offload.json"
REDUCED = 1e-6
"""Error of a gradient that is right in float64: DeepSpeed adds micro-batches and ranks up in float32."""


def work(tmp: Path, task: str, precision: str, *more: str, ranks: int, stage: int | Path) -> None:
    accelerate(tmp, "tests.workers.ranks", task, precision, str(tmp), *more, ranks=ranks, stage=stage)


def found(folder: Path, name: str, budget: int) -> dict:
    loaded = torch.load(folder / f"{name}-{budget}.pt")
    return loaded | {"grads": {k: v.double() for k, v in loaded["grads"].items()}}


@pytest.mark.parametrize(("asked", "bucket"), [({}, 1 << 26), ({"reduce_bucket_size": 1000}, 1000)])
def test_deepspeed_is_told_of_buckets_that_a_gpu_can_spare_and_no_timers(asked, bucket, monkeypatch):
    plugin = SimpleNamespace(zero_stage=2, deepspeed_config={"zero_optimization": {"stage": 2} | asked})
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr(distributed, "_plugin", lambda: plugin)
    monkeypatch.setattr("accelerate.Accelerator", lambda **_: None)
    distributed.start("bf16", max_grad_norm=1.0, trackers=[])
    assert plugin.deepspeed_config["zero_optimization"] == {"stage": 2, "reduce_bucket_size": bucket}
    assert plugin.deepspeed_config["timers"] == {"throughput": {"enabled": False}}


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every case on one rank, in float64, at the ZeRO stage of a run without a launcher."""
    tmp = tmp_path_factory.mktemp("one")
    work(tmp, "gradients", "fp64", ranks=1, stage=1)
    return tmp


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("name", cases.REFERENCES)
def test_a_step_under_deepspeed_equals_plain_autograd_in_float64(name: str, budget: int, one_rank: Path):
    got = found(one_rank, name, budget)
    loss, expected = cases.independent(name, tied=True)
    assert abs(got["loss"] - loss) < 1e-9
    assert cases.relative_error(got["grads"], expected) < REDUCED


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_share_one_selection_and_one_gradient(ranks: int, one_rank: Path, tmp_path: Path):
    work(tmp_path, "gradients", "fp64", ranks=ranks, stage=0)
    for name in cases.LOSSES:
        for budget in BUDGETS:
            got, one = (found(folder, name, budget) for folder in (tmp_path, one_rank))
            assert got["rollouts"] == one["rollouts"]
            assert cases.same_weights(got["weights"], one["weights"], within=1e-14)
            assert abs(got["loss"] - one["loss"]) < 1e-12
            assert cases.relative_error(got["grads"], one["grads"]) < REDUCED


@pytest.fixture(scope="module", params=[2, 3])
def sharded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """A folder with what two ranks found, first each with rollouts of its own and then with pieces; the ZeRO stage.

    Under ZeRO-3 with checkpointing, which repeats gathers and exchanges in the backward pass.
    """
    tmp = tmp_path_factory.mktemp("sharded")
    work(tmp, "gradients", "fp32", "pieces", *["checkpointed"] * (request.param == 3), ranks=2, stage=request.param)
    return tmp, request.param


def test_two_sharded_ranks_equal_one_rank(sharded: tuple[Path, int], one_rank: Path):
    tmp_path, stage = sharded
    for name in cases.LOSSES:
        for budget in BUDGETS:
            got, one = (found(folder, name, budget) for folder in (tmp_path, one_rank))
            assert got["head_is_whole"] is (stage != 3), "ZeRO-3 must shard the head, or this shows nothing"
            assert got["loss"] == pytest.approx(one["loss"], rel=1e-5)
            assert cases.relative_error(got["grads"], one["grads"]) < 1e-5
            assert cases.same_weights(got["weights"], one["weights"], within=1e-6)
    got, one = (found(folder, "soft_or_batch", 1) for folder in (tmp_path, one_rank))
    assert cases.relative_error(got["grads"], one["grads"]) < 1e-5, "a rank without a rollout"


def test_two_sharded_ranks_share_sequences(sharded: tuple[Path, int], one_rank: Path):
    """ZeRO's gathers meet the exchange of tokens; a near tie among 2,048 tokens may be chosen otherwise in fp32."""
    for name, budget in [("soft_or_batch", 40), ("soft_or_rollout", 4096)]:
        got, one = found(sharded[0], f"pieces-{name}", budget), found(one_rank, name, budget)
        assert got["loss"] == pytest.approx(one["loss"], rel=1e-5)
        assert cases.same_weights(got["weights"], one["weights"], within=1e-6)
        assert cases.relative_error(got["grads"], one["grads"]) < 1e-5
    got, run = found(sharded[0], "pieces-soft_or_batch", LONG), cases.run(cases.recipe("soft_or_batch"), tied=True)
    assert got["loss"] == pytest.approx(cases.taken(run, long_rollouts()).metrics["loss"], rel=1e-5)
    assert cases.relative_error(got["grads"], cases.gradients(run.trainer.student)) < 1e-3


@pytest.mark.parametrize(
    ("stage", "ranks", "precision", "within"), [(0, 2, "fp64", REDUCED), (0, 3, "fp64", REDUCED), (3, 2, "fp32", 1e-5)]
)
def test_a_teachers_head_cut_by_vocabulary_gives_the_whole_ones_gradient(
    stage: int, ranks: int, precision: str, within: float, one_rank: Path, tmp_path: Path
):
    """Also where only one rank has a rollout; 37 outcomes over 2 or 3 ranks are unequal parts."""
    work(tmp_path, "gradients", precision, "by_vocabulary", ranks=ranks, stage=stage)
    for name, budget in [*product(cases.STREAMED, BUDGETS), ("soft_or_batch", 1)]:
        got, one = (found(folder, name, budget) for folder in (tmp_path, one_rank))
        assert sum(got["teacher_rows"]) == cases.VOCABULARY and max(got["teacher_rows"]) < cases.VOCABULARY
        assert got["head_is_whole"] is (stage != 3)
        assert got["loss"] == pytest.approx(one["loss"], rel=within)
        assert cases.relative_error(got["grads"], one["grads"]) < within, name
        assert cases.same_weights(got["weights"], one["weights"], within=1e-13 if precision == "fp64" else 1e-6)


def test_adapters_get_one_gradient_over_sharded_ranks_and_plain_autograds(tmp_path: Path):
    """Every linear layer and the head adapted, over a base that ZeRO-3 shards too."""
    student = cases.adapted(["all-linear", "lm_head"])
    work(tmp_path, "gradients", "fp32", "adapted", "untied", ranks=2, stage=3)
    for name, budget in [*product(("soft_or_batch", "tsdkd"), BUDGETS), ("soft_or_batch", 1)]:
        run = cases.run(cases.recipe(name), trainer=cases.PlainTrainer(student), tied=True)
        outcome = cases.taken(run, cases.rollouts() if budget > 1 else cases.rollouts()[2:3])
        trained = {n: p for n, p in student.model.named_parameters() if p.requires_grad}
        got = found(tmp_path, name, budget)
        assert got["head_is_whole"] is False
        assert got["loss"] == pytest.approx(outcome.metrics["loss"], rel=1e-5)
        assert cases.relative_error(got["grads"], {n: p.grad for n, p in trained.items()}) < 1e-5
        student.zero_grad()


def test_adapters_train_beside_a_base_that_stays_and_are_merged_from_shards(tmp_path: Path):
    work(tmp_path, "steps", "fp32", "adapted", "untied", ranks=2, stage=3)
    left = torch.load(tmp_path / "steps.pt")
    moved = {name for name, weight in left["start"].items() if not torch.equal(weight, left["end"][name])}
    assert moved == {name for name in left["start"] if "lora_" in name}
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "model").state_dict()
    student = cases.adapted(["all-linear", "lm_head"], dtype=torch.float32)
    student.model.load_state_dict(left["end"])
    assert all(torch.equal(exported[name], weight) for name, weight in student.weights())


@pytest.mark.parametrize(("stage", "ranks"), [(1, 1), (1, 2), (2, 2), (3, 2)])
def test_bf16_micro_batches_add_up_to_the_same_gradient(stage: int, ranks: int, tmp_path: Path):
    work(tmp_path, "gradients", "bf16", ranks=ranks, stage=stage)
    for name in BF16:
        many, one = (found(tmp_path, name, budget) for budget in BUDGETS)
        assert many["loss"] == pytest.approx(one["loss"], rel=0.01)
        sums = torch.cat([grad.flatten() for grad in many["grads"].values()])
        assert not torch.equal(sums, sums.bfloat16().double()), "the sum over micro-batches and ranks was rounded"
        if cases.same_weights(many["weights"], one["weights"], within=0):
            assert cases.relative_error(many["grads"], one["grads"]) < 0.05


@pytest.fixture(
    scope="module",
    params=[(1, 1, "untied"), (2, 2, "tied"), (3, 2, "tied"), (3, 2, "untied", "checkpointed")],
    ids=lambda param: "-".join(map(str, param)),
)
def steps(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bool]:
    """A folder with what two steps left behind, and whether the student's head is tied."""
    stage, ranks, *shape = request.param
    tmp = tmp_path_factory.mktemp("steps")
    work(tmp, "steps", "fp32", *shape, ranks=ranks, stage=stage)
    return tmp, shape[0] == "tied"


def test_a_step_without_a_token_changes_nothing(steps: tuple[Path, bool]):
    left = torch.load(steps[0] / "steps.pt")
    assert left["skipped"] and all(torch.equal(left["idle"][name], weight) for name, weight in left["start"].items())


def test_weights_decay_in_matrices_alone(steps: tuple[Path, bool]):
    left = torch.load(steps[0] / "steps.pt")
    share = 1 - OPTIMIZER["lr"] * OPTIMIZER["weight_decay"]
    for name, weight in left["start"].items():
        expected = weight * share if weight.ndim == 2 else weight
        torch.testing.assert_close(left["decayed"][name], expected, rtol=1e-6, atol=0)


def test_the_optimizer_sees_the_gradient_clipped_and_the_metric_its_norm_before(steps: tuple[Path, bool]):
    """Gradient checkpointing among the launches: the gradient is the plain one's."""
    left = torch.load(steps[0] / "steps.pt")
    _, whole = cases.independent("soft_or_batch", tied=steps[1], weights=left["decayed"])
    norm = float(torch.nn.utils.get_total_norm(whole.values()))
    assert left["grad_norm"] == pytest.approx(norm, rel=1e-5)
    assert norm > 10 * OPTIMIZER["max_grad_norm"]
    clipped = {name: grad * OPTIMIZER["max_grad_norm"] / norm for name, grad in whole.items()}
    assert cases.relative_error({k: v.double() for k, v in left["grads"].items()}, clipped) < 1e-5


def test_the_exported_student_is_the_trained_one(steps: tuple[Path, bool]):
    folder, tied = steps
    end = torch.load(folder / "steps.pt")["end"]
    loaded = AutoModelForCausalLM.from_pretrained(folder / "model")
    exported = dict(loaded.named_parameters())
    assert exported.keys() == end.keys()
    assert all(torch.equal(exported[name], weight) for name, weight in end.items())
    trained = cases.model(1, hidden=16, tied=tied, dtype=torch.float32)
    trained.load_state_dict(end, strict=not tied)
    ids = torch.arange(cases.VOCABULARY)[None]
    assert torch.equal(loaded(ids).logits, trained(ids).logits)


def test_steps_with_the_optimizer_in_main_memory_are_those_without_any_sharding(large: dict[str, Path]):
    """Two ranks: ZeRO-3 with launch/'s file, whose optimizer is DeepSpeed's C++ Adam, against ZeRO-0 and torch's."""
    plain, offloaded = (torch.load(large[stage] / "several.pt") for stage in ("zero0", "zero3-offload"))
    assert (plain.pop("optimizer"), offloaded.pop("optimizer")) == ("AdamW", "DeepSpeedCPUAdam")
    assert len({step["lr"] for step, _ in plain.values()}) == len(plain) == 4
    for index, (step, weights) in plain.items():
        other, moved = offloaded[index]
        assert other["loss"] == pytest.approx(step["loss"], rel=1e-5)
        assert other["grad_norm"] == pytest.approx(step["grad_norm"], rel=1e-5)
        assert cases.relative_error(moved, weights) < 1e-5
    assert cases.relative_error(plain[0][1], plain[3][1]) > 1e-3, "or nothing was trained"


@pytest.mark.parametrize(
    ("stage", "precision", "shape"),
    [
        *product([0, 1, 2, 3], ["bf16", "fp32"], ["tied"]),
        (2, "bf16", "adapted tied"),
        (3, "fp32", "adapted untied"),
        pytest.param(OFFLOAD, "bf16", "tied", id="offload-bf16-tied"),
        pytest.param("2-offload", "bf16", "tied", id="2-offload-bf16-tied"),
    ],
)
def test_a_step_that_is_not_finite_on_one_rank_changes_nothing_on_any(stage, precision, shape, tmp_path: Path):
    """And a checkpoint between steps gives back all that trains; adapters' checkpoints hold nothing else."""
    stage = stage_file(tmp_path, 2, offload=True) if stage == "2-offload" else stage
    work(tmp_path, "nonfinite", precision, *shape.split(), ranks=2, stage=stage)
    stored = [torch.load(file, weights_only=False) for file in (tmp_path / "after-0").rglob("*model_states.pt")]
    if "adapted" in shape:
        assert {name for part in stored for name in part["module"] if "lora_" not in name} == set()
        assert {part["frozen_param_fragments"] for part in stored} == {None}
    left = torch.load(tmp_path / "nonfinite.pt")
    assert [left[i]["skipped"] for i in range(5)] == [False, True, True, False, False]
    for before, after, same in [(0, 1, True), (1, 2, True), (2, 3, False), (3, 4, True)]:
        pairs = zip(left[before]["weights"].values(), left[after]["weights"].values(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs) is same
    assert all(bool(torch.isfinite(w).all()) for w in left[3]["weights"].values())
    moved = max(float((left[0]["weights"][k] - w).abs().max()) for k, w in left["start"].items())
    assert left["updates"] == {1}, "what Adam's bias corrections count"
    assert 0 < moved < 0.02, "Adam's first step moves a weight by the step's learning rate, 1e-3, and bf16's rounding"
