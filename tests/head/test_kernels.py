"""Fused or plain, a pass gives the same; what can't be compiled runs plain. Few kernels: each takes a second."""

import math
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from opd.head import kernels
from opd.head.kernels import Kernel, run
from opd.head.pay import ChosenPay, DensePay
from opd.head.settings import HeadSettings
from opd.head.statistics import MEASURED, row_statistics, with_normalisers
from opd.head.sums import BlockSums
from opd.head.weights import HeadWeights, HiddenStates
from opd.objectives import OBJECTIVES
from tests.build import Models, gradient, random_states, states, statistics
from tests.head.test_precision import errors, models, ours, plain
from tests.head.test_sums import ASKS, TAILS, peaked, truth
from tests.oracle import assert_close

N, V = 37, 301
SETTINGS = HeadSettings(temperature=1.7, stop=(9, 2, 250), merge_stop=True, tile_bytes=1 << 17)
TERMS = ["reverse_kl", "jsd", "skew_kl", "entropy"]


@pytest.fixture(autouse=True, scope="module")
def room():
    """For kernels, whatever other tests compiled."""
    kernels.forget()


@pytest.fixture(autouse=True)
def strict(recwarn, monkeypatch):
    """No work is compiled for a second time, and whatever falls back to plain torch says so."""
    monkeypatch.setattr(kernels, "SAID", set())
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield
    assert not lines_of(recwarn)


def lines_of(warned) -> list[str]:
    """Ours, of all that was warned of."""
    return [line for w in warned if (line := str(w.message)).startswith("head_kernels")]


def block(rows: int, columns: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Logits of both models as a strip holds them, [n, b] that lies as [b, n]."""
    generator = torch.Generator().manual_seed(rows)
    made = (3 * torch.randn(columns + 3, rows, generator=generator) for _ in range(2))
    return dict(zip(("student", "teacher"), (x.to(dtype)[3:].T for x in made), strict=True))


def test_one_kernel_serves_every_size_and_gives_plain_torchs_sums():
    work, before = BlockSums(ASKS, 0.7), len(kernels.KERNELS)
    for rows, columns in [(16, 16), (5, 40), (64, 7), (33, 33), (2, 2), (3, 2000)]:
        given = block(rows, columns)
        found, expected = run(work, given, fuse=True), work(given)
        assert list(found) == list(expected)
        for name, sum_n in expected.items():
            torch.testing.assert_close(found[name], sum_n, rtol=1e-5, atol=1e-6)
    assert len(kernels.KERNELS) == before + 1


def single(models: Models, dtype: torch.dtype) -> Models:
    """Both in that dtype."""

    def cast(states: HiddenStates) -> HiddenStates:
        head = states.head
        return HiddenStates(
            states.hidden_NH.to(dtype), replace(head, weight_VH=head.weight_VH.to(dtype), bias_V=head.bias_V.to(dtype))
        )

    return Models(cast(models.student), cast(models.teacher))


def paid(models: Models, settings: HeadSettings) -> list[Tensor]:
    """Loss and gradients of terms of every kind that streams, on rows of their own."""
    weight_N = torch.arange(N) % 3 / N
    dense = [DensePay(OBJECTIVES[name](), weight_N.roll(i)) for i, name in enumerate(TERMS)]
    ids_NK = torch.arange(2 * N).reshape(N, 2) % V
    pays = [*dense, ChosenPay(ids_NK, torch.linspace(-1, 1, 2 * N).reshape(N, 2))]
    loss, grads = gradient(models, pays, torch.arange(N) % V, settings)
    return [loss, *grads.values()]


@pytest.mark.parametrize(("head", "never"), [({"softcap": 5.0}, []), ({"scale": 0.5}, [11, 12])], ids=str)
def test_fused_terms_pay_what_they_pay_in_float64(head, never):
    """Temperature, a bent head, bias, a merged stop class, chosen tokens, classes that both models rule out."""
    given = Models(random_states(N, 4, V, seed=1, **head), random_states(N, 6, V, seed=2))
    given.student.head.bias_V[never] = given.teacher.head.bias_V[never] = -torch.inf
    truth = paid(given, SETTINGS)
    fused, unfused = (paid(single(given, torch.float32), replace(SETTINGS, kernels=k)) for k in ("fused", "plain"))
    for found, theirs, expected in zip(fused, unfused, truth, strict=True):
        assert found.dtype == torch.float32
        error, other = ((x.double() - expected).norm() / expected.norm() for x in (found, theirs))
        assert error < 1e-5 and error < 2 * other + 1e-7


def test_fused_rounded_products_err_as_plain_torch_does():
    """Products of 16 bits are read, and the gradient written, as they are; but a head that bends them comes first."""
    objective, pair = OBJECTIVES["reverse_kl"](), models(torch.bfloat16)
    truth = plain(objective, *pair, torch.float64)
    for is_known in (True, False):
        found = ours(objective, *pair, is_known=is_known, precision="fast", kernels="fused")
        theirs = ours(objective, *pair, is_known=is_known, precision="fast")
        assert all(x <= 1.05 * y for x, y in zip(errors(found, truth), errors(theirs, truth), strict=True))
    merged = {"is_known": True, "precision": "fast", "stop": (3, 1400), "merge_stop": True}
    assert max(errors(*(ours(objective, *pair, kernels=k, **merged) for k in ("fused", "plain")))) < 1e-2
    bent = [replace(s, head=replace(s.head, softcap=4.0)) for s in pair]
    found = ours(objective, *bent, is_known=True, precision="fast", kernels="fused")
    assert max(errors(found, ours(objective, *bent, is_known=True))) < 0.03


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_fused_entropy_of_a_peaked_row_is_right_to_a_percent(dtype):
    student = peaked(TAILS, dtype)
    log_p_NV = truth(student)
    expected_N = -(log_p_NV.exp() * log_p_NV).sum(-1)
    found_N = statistics(student, None, ["student_entropy"], kernels="fused")["student_entropy"]
    torch.testing.assert_close(found_N.double(), expected_N, rtol=1e-2, atol=1e-9)


def test_fused_statistics_of_rounded_products_are_plain_torchs():
    student, teacher = models(torch.bfloat16)
    ids_N = torch.arange(len(student)) * 31 % 1500
    stop = {"stop": (0, 31, 62), "merge_stop": True, "precision": "fast"}
    needs = with_normalisers(MEASURED)
    fused, unfused = (
        row_statistics(needs, student, teacher, ids_N, HeadSettings(kernels=kernels_, **stop))
        for kernels_ in ("fused", "plain")
    )
    for name, column_N in unfused.items():
        torch.testing.assert_close(fused[name].double(), column_N.double(), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_stop_class_among_rounded_products_has_no_probability_above_one(dtype):
    """Four end tokens of logit 20 are one of 21.39, in bfloat16 21.375; a single one's log-prob is its own."""
    sure = states([[20.0] * 4 + [-20.0] * 4] * 2, dtype)
    settings = {"stop": (0, 1, 2, 3), "merge_stop": True, "precision": "fast", "kernels": "fused"}
    names = ["student_logprob", "student_stop_mass", "trainer_logprob", "student_entropy"]
    found = statistics(sure, None, names, **settings)
    assert found["student_logprob"].max() <= 0 and found["student_stop_mass"].max() <= 1
    assert_close(found["trainer_logprob"], [-math.log(4)] * 2, 1e-6)
    assert_close(found["student_entropy"], [0.0] * 2, 1e-6)


@pytest.mark.parametrize("kernels_", ["plain", "fused"])
@pytest.mark.parametrize("ends", [1, 3])
def test_rounded_end_tokens_that_stay_apart_have_no_probability_above_one_together(ends, kernels_):
    """20.05 is 20 in bfloat16; three of 20 are 21.1, which would be 21.125."""
    weight_V2 = torch.tensor([[1.0, 1.0]] * ends + [[-1.0, 0.0]] * 5, dtype=torch.bfloat16)
    sure = HiddenStates(torch.tensor([[20.0, 0.05]] * 2, dtype=torch.bfloat16), HeadWeights(weight_V2))
    settings = {"stop": tuple(range(ends)), "precision": "fast", "kernels": kernels_}
    assert_close(statistics(sure, None, ["student_stop_mass"], **settings)["student_stop_mass"], [1.0] * 2, 1e-6)


@dataclass(frozen=True)
class Halved:
    """A work of no kernel yet."""

    tag: str

    def __call__(self, given: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"half": given["student"].sum(-1) / 2}


def no_compiler(*_, **__):
    def compiled(*_):
        raise torch._dynamo.exc.InternalTorchDynamoError("no compiler here\nand a trace")

    return compiled


def test_without_a_compiler_one_line_says_so_and_plain_torch_goes_on(monkeypatch):
    monkeypatch.setattr(torch, "compile", no_compiler)
    given, work = block(4, 5), Halved("none")
    with pytest.warns(UserWarning, match="^head_kernels: plain torch .*no compiler here$") as said:
        found = [run(each, given, fuse=True)["half"] for each in (work, work, Halved("neither"))]
    assert len(lines_of(said)) == 1, [str(w.message) for w in said]
    assert all(torch.equal(half_n, given["student"].sum(-1) / 2) for half_n in found)


def test_a_kernel_that_fails_on_another_size_is_left_for_good(monkeypatch):
    given, work = block(4, 5), Halved("later")
    kernel = Kernel(work, given)
    kernel._compiled = no_compiler()
    monkeypatch.setattr(kernels, "_first", lambda *_: kernel)
    with pytest.warns(UserWarning, match="no compiler here") as said:
        found = [run(work, given, fuse=True)["half"] for _ in range(3)]
    assert len(lines_of(said)) == 1
    assert all(torch.equal(half_n, given["student"].sum(-1) / 2) for half_n in found)


def test_a_kernel_that_asks_for_too_many_compilations_is_left_for_good():
    """torch's own limit, whose exception is none of Dynamo's others."""
    given, work = block(4, 5), Halved("often")
    kernel = Kernel(work, given)
    kernel._compiled = torch.compile(kernel._traced(given), dynamic=False, fullgraph=True, backend="eager")
    limits = {"recompile_limit": 1, "error_on_recompile": False}
    with torch._dynamo.config.patch(limits), pytest.warns(UserWarning, match="FailOnRecompileLimitHit") as said:
        halves = [(kernel(each)["half"], each["student"].sum(-1) / 2) for each in (given, block(4, 6))]
    assert len(lines_of(said)) == 1
    assert all(torch.equal(half_n, expected_n) for half_n, expected_n in halves)


def test_numbers_that_move_are_not_compiled_for_ever(monkeypatch):
    monkeypatch.setattr(kernels, "MOST_KERNELS", len(kernels.KERNELS))
    with pytest.warns(UserWarning, match="move with progress"):
        run(Halved("moved"), block(4, 5), fuse=True)


@pytest.mark.parametrize("size", [(1, 9), (9, 1)], ids=str)
def test_a_single_row_or_column_runs_plain(size, monkeypatch):
    monkeypatch.setattr(kernels, "_first", None)
    assert run(Halved("small"), block(*size), fuse=True)["half"].shape == size[:1]


@pytest.mark.parametrize(
    ("asked", "device", "dtype", "fuses"),
    [
        ("auto", "cpu", torch.float32, False),
        ("auto", "cuda", torch.bfloat16, True),
        ("plain", "cuda", torch.float32, False),
        ("fused", "cpu", torch.bfloat16, True),
        ("fused", "cpu", torch.float64, False),
        ("auto", "cuda", torch.float64, False),
    ],
)
def test_what_is_fused_follows_from_settings_device_and_dtype(asked, device, dtype, fuses):
    with FakeTensorMode(allow_non_fake_inputs=True):
        weight_VH = torch.empty(2, 2, dtype=dtype, device=device)
    assert HeadSettings(kernels=asked).fuses(weight_VH) is fuses
