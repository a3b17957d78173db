"""Sums over the vocabulary: of any split the same, and with digits where an entropy or a divergence is tiny."""

import math

import pytest
import torch
from torch import Tensor

from opd.head.settings import LEAST
from opd.head.sums import ENTROPIES, KLS, READ, block_sums, log_normaliser, merged
from opd.head.weights import HeadWeights, HiddenStates
from tests.build import states, statistics
from tests.oracle import assert_close

ASKS = frozenset(READ)
V = 17
DTYPES = {"f64": torch.float64, "f32": torch.float32, "bf16": torch.bfloat16}
every_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())


def logits(scale: float = 3.0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {who: scale * torch.randn(4, V, generator=generator, dtype=torch.float64) for who in ("student", "teacher")}


def split(given: dict[str, Tensor], edges: list[int], temperature: float) -> list:
    pairs = zip([0, *edges], [*edges, V], strict=True)
    return [block_sums(ASKS, {w: x[:, a:b] for w, x in given.items()}, temperature) for a, b in pairs]


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.7])
@pytest.mark.parametrize("scale", [1.0, 30.0])
@pytest.mark.parametrize("edges", [[], [1], [16], [3, 4, 11], list(range(1, V))], ids=len)
def test_sums_of_blocks_are_those_of_the_whole(edges, scale, temperature):
    given = logits(scale)
    whole, parts = block_sums(ASKS, given, temperature), split(given, edges, temperature)
    at_once = merged(parts)
    one_by_one = parts[0]
    for part in parts[1:]:
        one_by_one = merged([one_by_one, part])
    for name, sum_n in whole.items():
        assert_close(at_once[name], sum_n, 1e-12)
        assert_close(one_by_one[name], sum_n, 1e-12)


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_what_sums_give_is_the_textbooks(temperature):
    given = logits()
    sums = merged(split(given, [5, 6], temperature))
    log_p = {who: (x / temperature).log_softmax(-1) for who, x in given.items()}
    for who, x in given.items():
        assert_close(log_normaliser(sums, who), (x / temperature).logsumexp(-1), 1e-13)
    for name, who in ENTROPIES.items():
        assert_close(READ[name](sums, name), -(log_p[who].exp() * log_p[who]).sum(-1), 1e-13)
    for name, (who, other) in KLS.items():
        assert_close(READ[name](sums, name), (log_p[who].exp() * (log_p[who] - log_p[other])).sum(-1), 1e-13)


def test_only_what_is_asked_is_summed():
    given = logits()
    found = block_sums(frozenset(["reverse_kl"]), given, 1.0)
    assert found.keys() == {"student_max", "student_sum", "teacher_max", "teacher_sum", "reverse_kl"}
    assert block_sums(frozenset(), {"student": given["student"]}, 1.0).keys() == {"student_max", "student_sum"}


def test_sums_are_stacked_in_an_order_that_all_ranks_share():
    """A set's order is each process's own."""
    names = [f"{letter}_ruled_out" for letter in "ecjabhgidf"]
    part = block_sums(frozenset(), logits(), 1.0) | {name: torch.zeros(4) for name in names}
    assert list(merged([part]))[-len(names) :] == sorted(names)


def test_a_block_of_nothing_that_can_happen_adds_nothing():
    given = logits()
    never = {who: torch.full((4, 3), LEAST, dtype=torch.float64) for who in given}
    whole, found = block_sums(ASKS, given, 1.0), merged([block_sums(ASKS, x, 1.0) for x in (never, given)])
    assert all(torch.equal(found[name], sum_n) for name, sum_n in whole.items())


def peaked(tail: list[float], dtype: torch.dtype, classes: int = 400) -> HiddenStates:
    """Rows whose first class stands alone, 20 logits up and more, over a tail of `classes` with that logit each.

    Two hidden numbers make it: the first class reads one, the tail the other.
    """
    hidden_N2 = torch.tensor([[1.0, value] for value in tail], dtype=dtype)
    weight_V2 = torch.tensor([[20.0, 0.0], *[[0.0, 1.0]] * classes], dtype=dtype)
    return HiddenStates(hidden_N2, HeadWeights(weight_V2))


def truth(states: HiddenStates) -> Tensor:
    """log p, float64, of the very numbers that the states hold."""
    return (states.hidden_NH.double() @ states.head.weight_VH.double().T).log_softmax(-1)


TAILS = [0.5, -2.5, -5.5, 5.0]
"""Entropies of 3e-5, 2e-6, 9e-8 and 2e-3."""


@every_dtype
@pytest.mark.parametrize("tile_bytes", [1, 4000, 1 << 20])
def test_the_entropy_of_a_peaked_row_is_right_to_a_percent(dtype, tile_bytes):
    student = peaked(TAILS, dtype)
    log_p_NV = truth(student)
    expected_N = -(log_p_NV.exp() * log_p_NV).sum(-1)
    found_N = statistics(student, None, ["student_entropy"], tile_bytes=tile_bytes)["student_entropy"]
    assert expected_N.min() < 1e-7 and expected_N.max() > 1e-4
    torch.testing.assert_close(found_N.double(), expected_N, rtol=1e-2, atol=1e-9)


@every_dtype
@pytest.mark.parametrize("tile_bytes", [1, 4000, 1 << 20])
@pytest.mark.parametrize("name", KLS)
def test_a_divergence_of_peaked_rows_is_right_to_a_percent(name, dtype, tile_bytes):
    student, teacher = peaked(TAILS, dtype), peaked([x - 1.5 for x in TAILS], dtype)
    log_p_NV, log_q_NV = (truth(s) for s in ((student, teacher) if name == "reverse_kl" else (teacher, student)))
    expected_N = (log_p_NV.exp() * (log_p_NV - log_q_NV)).sum(-1)
    found_N = statistics(student, teacher, [name], tile_bytes=tile_bytes)[name]
    torch.testing.assert_close(found_N.double(), expected_N, rtol=1e-2, atol=1e-9)


@every_dtype
def test_a_divergence_is_infinite_where_one_rules_out_what_the_other_does(dtype):
    """Both ways of ruling out: the teacher can't do class 2, the student can't do class 0."""
    rows = [[0.0, 1.0, 2.0], [0.0, 1.0, -30.0], [0.0, 1.0, -60.0]]
    never = torch.tensor([0.0, 0.0, -torch.inf], dtype=dtype)
    student, teacher = states(rows, dtype), states(rows, dtype)
    ruled = HiddenStates(teacher.hidden_NH, HeadWeights(teacher.head.weight_VH, never))
    found = statistics(student, ruled, ["reverse_kl", "forward_kl"])
    assert found["reverse_kl"].tolist() == [math.inf] * 3 and found["forward_kl"].isfinite().all()
    found = statistics(ruled, student, ["reverse_kl", "forward_kl"])
    assert found["forward_kl"].tolist() == [math.inf] * 3 and found["reverse_kl"].isfinite().all()


@every_dtype
@pytest.mark.parametrize("tile_bytes", [1, 1 << 20])
def test_ten_thousand_logits_up_or_down_are_but_a_certain_class(dtype, tile_bytes):
    student = states([[1e4, -1e4, 0.0], [-1e4, -1e4, -1e4], [1e4, 1e4, -1e4]], dtype)
    teacher = states([[1e4, 0.0, -1e4], [0.0, 0.0, 0.0], [1e4, 1e4, 1e4]], dtype)
    found = statistics(student, teacher, ["student_entropy", "reverse_kl", "forward_kl"], tile_bytes=tile_bytes)
    assert_close(found["student_entropy"].double(), [0, math.log(3), math.log(2)], 1e-6)
    assert_close(found["reverse_kl"].double(), [0, 0, math.log(1.5)], 1e-6)
    assert_close(found["forward_kl"][:2].double(), [0, 0], 1e-6)
    assert float(found["forward_kl"][2]) == pytest.approx(2e4 / 3, rel=1e-2)
