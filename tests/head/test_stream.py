"""Terms strip by strip: with the sums of a former pass they pay what they pay without, however rows are cut."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from opd.head import stream
from opd.head.cost import kept_rows
from opd.head.loss import head_loss
from opd.head.pay import ChosenPay, DensePay, RowsPay
from opd.head.settings import HeadSettings
from opd.head.statistics import NORMALISERS, row_statistics, with_normalisers
from opd.objectives import OBJECTIVES
from opd.objectives.base import DenseObjective, LogProbs
from opd.objectives.jsd import JSD
from tests.build import TILE, Models, gradient, leaves, random_states
from tests.oracle import assert_close

N, V = 13, 11
STOP = (9, 2, 5)
PARTS = ("hidden", "weight", "bias")
SUMMED = {
    "reverse_kl": [OBJECTIVES["reverse_kl"]()],
    "forward_kl": [OBJECTIVES["forward_kl"]()],
    "entropy": [OBJECTIVES["entropy"]()],
    "bonus": [OBJECTIVES["entropy"](mode="bonus")],
    "both": [OBJECTIVES["reverse_kl"](), OBJECTIVES["forward_kl"]()],
}
"""Objectives whose Σf and Σf′ are statistics."""
summed = pytest.mark.parametrize("objectives", SUMMED.values(), ids=SUMMED.keys())
SETTINGS = {
    "plain": HeadSettings(tile_bytes=TILE),
    "cold": HeadSettings(temperature=0.7, tile_bytes=TILE),
    "warm": HeadSettings(temperature=1.7, tile_bytes=TILE, stop=STOP),
    "merged": HeadSettings(temperature=1.7, tile_bytes=TILE, stop=STOP, merge_stop=True),
    "strips": HeadSettings(temperature=0.7, tile_bytes=900, stop=STOP, merge_stop=True),
}
every_setting = pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
SOME_N = torch.tensor([1.0, 0, 0.5, 0, 0, 2, 0.3, 0, 0.1, 0, 0, 0, 0.7], dtype=torch.float64)


def models(**head) -> Models:
    """Student and teacher of unequal width."""
    return Models(random_states(N, 4, V, seed=1, **head), random_states(N, 6, V, seed=2, **head))


def dense(objectives: list[DenseObjective], weight_N: Tensor | None = None) -> list[DensePay]:
    """Every term on rows of its own weights."""
    weight_N = torch.linspace(0.5, 1.5, N, dtype=torch.float64) if weight_N is None else weight_N
    return [DensePay(objective, weight_N * (1 + i)) for i, objective in enumerate(objectives)]


def chosen() -> ChosenPay:
    """Slopes of either sign; end tokens among the ids, and one id twice."""
    ids_NK = torch.arange(N)[:, None] * torch.tensor([[1, 3, 1]]) % V
    slope_NK = torch.linspace(-1, 1, 3 * N, dtype=torch.float64).reshape(N, 3)
    return ChosenPay(ids_NK, slope_NK.masked_fill(torch.arange(N)[:, None] % 4 == 0, 0))


def known_of(models: Models, objectives: list[DenseObjective], settings: HeadSettings) -> dict[str, Tensor]:
    needs = {"student_normaliser"} | {objective.sums for objective in objectives}
    return row_statistics(with_normalisers(needs), models.student, models.teacher, torch.zeros(N).long(), settings)


def paid(models: Models, pays: list, settings: HeadSettings, known=None) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients; `known` are statistics of a former pass."""
    return gradient(models, pays, torch.arange(N) % V, settings, known)


def assert_same(found: tuple[Tensor, dict], expected: tuple[Tensor, dict]) -> None:
    assert_close(found[0], expected[0], 1e-12)
    for part in PARTS:
        assert_close(found[1][part], expected[1][part], 1e-12)


def assert_known_changes_nothing(models: Models, pays: list, settings: HeadSettings) -> None:
    objectives = [pay.objective for pay in pays if isinstance(pay, DensePay)]
    known = known_of(models, objectives, settings)
    assert_same(paid(models, pays, settings, known), paid(models, pays, settings))


@summed
@every_setting
@pytest.mark.parametrize("head", [{}, {"softcap": 2.0}, {"scale": 0.5}, {"softcap": 2.0, "scale": 3.0}], ids=str)
def test_known_sums_change_neither_loss_nor_gradient(objectives, settings, head):
    assert_known_changes_nothing(models(**head), [*dense(objectives), chosen()], settings)


@pytest.mark.parametrize("is_known", [False, True])
@pytest.mark.parametrize("head", [{}, {"softcap": 2.0, "scale": 3.0}], ids=str)
def test_merged_end_tokens_are_paid_as_one_outcome(head, is_known):
    """By autograd over log-probabilities whose end tokens are one column."""
    given, settings, objectives = models(**head), SETTINGS["merged"], SUMMED["both"]
    pays, rest = [*dense(objectives), chosen()], [i for i in range(V) if i not in STOP]
    parts, student = leaves(given.student)
    raw = [(s.head.logits(s.hidden_NH) / settings.temperature).log_softmax(-1) for s in (student, given.teacher)]
    log_p = [torch.cat([x[:, STOP].logsumexp(-1, keepdim=True), x[:, rest]], -1) for x in raw]
    place_V = torch.zeros(V, dtype=torch.long).index_copy(0, torch.tensor(rest), torch.arange(len(rest)) + 1)
    loss = sum((p.objective(*map(LogProbs, log_p))[0].sum(-1) * p.weight_N).sum() for p in pays[:-1])
    slopes = (pays[-1].slope_NK * log_p[0].gather(-1, place_V[pays[-1].token_id_NK])).sum()
    expected = loss.detach(), dict(zip(PARTS, torch.autograd.grad(loss + slopes, list(parts.values())), strict=True))
    assert_same(paid(given, pays, settings, known_of(given, objectives, settings) if is_known else None), expected)


@summed
@every_setting
def test_known_sums_of_more_rows_serve_those_that_pay(objectives, settings):
    assert_known_changes_nothing(models(), dense(objectives, SOME_N), settings)


@every_setting
def test_chosen_tokens_need_the_students_normaliser_alone(settings):
    given = replace(models(), teacher=None)
    known = known_of(models(), [], settings)
    assert_same(paid(given, [chosen()], settings, known), paid(given, [chosen()], settings))


@summed
def test_known_sums_leave_no_sums_to_be_taken(objectives, monkeypatch):
    given, settings = models(), SETTINGS["merged"]
    known = known_of(given, objectives, settings)
    monkeypatch.setattr(stream, "statistics_of", None)
    paid(given, dense(objectives), settings, known)
    for missing in {objective.sums for objective in objectives} | {"student_normaliser"}:
        with pytest.raises(TypeError):
            paid(given, dense(objectives), settings, {k: v for k, v in known.items() if k != missing})


@summed
def test_known_sums_of_other_states_give_no_loss(objectives):
    """The student's, that is: what they say must sum to 1."""
    given, settings = models(), SETTINGS["plain"]
    known = known_of(given, objectives, settings)
    other = replace(given, student=random_states(N, 4, V, seed=7))
    assert paid(other, dense(objectives), settings, known)[0].isnan()


@summed
def test_known_sums_at_another_temperature_give_no_loss(objectives):
    given, settings = models(), SETTINGS["plain"]
    known = known_of(given, objectives, replace(settings, temperature=1.4))
    assert paid(given, dense(objectives), settings, known)[0].isnan()


@pytest.mark.parametrize("tile_bytes", [1, 900, 1 << 16])
@pytest.mark.parametrize("is_known", [False, True])
@summed
def test_neither_strips_nor_slabs_change_anything(objectives, is_known, tile_bytes):
    given, whole = models(softcap=3.0), SETTINGS["merged"]
    pays, cut = [*dense(objectives), chosen()], replace(whole, tile_bytes=tile_bytes)
    known = known_of(given, objectives, cut) if is_known else None
    assert_same(paid(given, pays, cut, known), paid(given, pays, whole))


@pytest.mark.parametrize("tile_bytes", [1, 900, 1 << 16])
def test_sweeps_of_an_objectives_own_are_cut_alike(tile_bytes):
    given, whole = models(scale=0.7), SETTINGS["merged"]
    pays = dense([JSD(beta=0.3), OBJECTIVES["skew_kl"](), OBJECTIVES["reverse_kl"]()])
    assert_same(paid(given, pays, replace(whole, tile_bytes=tile_bytes)), paid(given, pays, whole))


@every_setting
@pytest.mark.parametrize(("beta", "name"), [(0, "forward_kl"), (1, "reverse_kl")])
def test_the_ends_of_jsd_are_the_kls(beta, name, settings):
    given, expected = models(), paid(models(), dense([OBJECTIVES[name]()]), settings)
    pays = dense([JSD(beta=beta)])
    assert_same(paid(given, pays, settings), expected)
    assert_same(paid(given, pays, settings, known_of(given, [OBJECTIVES[name]()], settings)), expected)


@pytest.mark.parametrize("is_known", [False, True])
def test_a_second_backward_gives_the_same_gradient(is_known):
    given, settings, objectives = models(), SETTINGS["strips"], SUMMED["both"]
    known = known_of(given, objectives, settings) if is_known else None
    hidden_NH = given.student.hidden_NH.clone().requires_grad_()
    own, ids_N = replace(given.student, hidden_NH=hidden_NH), torch.zeros(N).long()
    loss = head_loss(own, given.teacher, dense(objectives), ids_N, settings, known=known)
    once, again = (torch.autograd.grad(s * loss, hidden_NH, retain_graph=True)[0] for s in (2.0, 3.0))
    assert once.any()
    assert_close(again, 1.5 * once, 1e-14)


@pytest.mark.parametrize("is_known", [False, True])
@every_setting
def test_whole_rows_and_strips_add_up(settings, is_known):
    """One loss of both is the sum of two."""
    given, objectives = replace(models(), weak_NH=random_states(N, 4, V, seed=3).hidden_NH), SUMMED["both"]
    streamed = [*dense(objectives), chosen()]
    tiled = [
        *dense([OBJECTIVES["reverse_kl"](teacher_top=3)], SOME_N),
        RowsPay(OBJECTIVES["uskd"](), SOME_N.flip(0), torch.ones(N, dtype=torch.float64)),
    ]
    known = known_of(given, objectives, settings) if is_known else None
    one, other = paid(given, streamed, settings), paid(given, tiled, settings)
    expected = one[0] + other[0], {part: one[1][part] + other[1][part] for part in PARTS}
    assert_same(paid(given, streamed + tiled, settings, known), expected)


def test_what_class_a_chosen_token_is_of_is_asked_once_a_slab(monkeypatch):
    """On a GPU each time waits for the end tokens to get there."""
    asked, outcome_of = [], HeadSettings.outcome_of
    monkeypatch.setattr(HeadSettings, "outcome_of", lambda *given: asked.append(given) or outcome_of(*given))
    rows = kept_rows(V, itemsize=8, tile_bytes=SETTINGS["strips"].tile_bytes)
    paid(replace(models(), teacher=None), [chosen()], SETTINGS["strips"])
    assert len(asked) == -(-int(chosen().kept_N.sum()) // rows)


def test_what_no_statistic_gives_makes_all_sums_anew():
    """With JSD among the terms, wrong known sums are not even looked at."""
    given, settings = models(), SETTINGS["merged"]
    pays = dense([JSD(beta=0.3), OBJECTIVES["reverse_kl"]()])
    wrong = {name: torch.full((N,), torch.nan) for name in (*NORMALISERS, "reverse_kl")}
    assert_same(paid(given, pays, settings, wrong), paid(given, pays, settings))


def test_a_teacher_that_is_missing_is_asked_for():
    with pytest.raises(ValueError, match="the teacher's whole distribution"):
        paid(replace(models(), teacher=None), dense(SUMMED["both"]), SETTINGS["plain"])
