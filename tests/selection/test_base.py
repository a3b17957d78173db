from typing import Literal

import pytest
import torch
from pydantic import ValidationError

from opd.selection.base import ScoreSelector, gumbel, kept_count
from tests.build import draw, token_table


class ByLogprob(ScoreSelector):
    """A selector whose scores a test writes by hand."""

    type: Literal["by_logprob"] = "by_logprob"

    def score(self, table):
        return table["student_logprob"]


def chosen(scores: list[float], lengths: list[int] | None = None, **fields) -> list[float]:
    table = token_table(lengths or [len(scores)], {"student_logprob": torch.tensor(scores, dtype=torch.float64)})
    return ByLogprob(**fields).weights(table, draw).tolist()


@pytest.mark.parametrize(
    ("total", "share", "count"),
    [(90, 0.7, 63), (10, 0.3, 3), (100, 0.29, 29), (3, 0.1, 1), (1, 0.99, 1), (0, 0.5, 0), (7, 1.0, 7), (9, 0.5, 4)],
)
def test_kept_count_is_the_floor_without_its_rounding_trap(total, share, count):
    assert kept_count(total, share) == count


def test_every_whole_product_of_a_percentage_is_kept_whole():
    for total in range(1, 401):
        for percent in range(1, 101):
            assert kept_count(total, percent / 100) == max(1, total * percent // 100)


def test_top_keeps_the_highest_and_bottom_the_lowest():
    assert chosen([3, 1, 2, 4], choose="top") == [1, 0, 0, 1]
    assert chosen([3, 1, 2, 4], choose="bottom") == [0, 1, 1, 0]


@pytest.mark.parametrize("choose", ["top", "bottom"])
def test_ties_go_to_the_earlier_token(choose):
    assert chosen([5.0] * 40, choose=choose, keep=0.25) == [1] * 10 + [0] * 30


def test_per_says_who_competes():
    scores, lengths = [9, 8, 7, 6, 1, 2], [4, 2]
    assert chosen(scores, lengths, per="rollout") == [1, 1, 0, 0, 0, 1]
    assert chosen(scores, lengths, per="batch") == [1, 1, 1, 0, 0, 0]


def test_an_empty_rollout_keeps_nothing_and_a_single_token_itself():
    assert chosen([4, 3, 2, 1], [0, 1, 0, 3, 0], keep=0.1) == [1, 1, 0, 0]


def test_a_gate_weighs_by_the_score_itself_and_counts_a_token_of_score_0():
    weights = chosen([0.5, 0.0, 2.0], choose="gate")
    assert weights == pytest.approx([0.5, 0.0, 2.0]) and min(weights) > 0


@pytest.mark.parametrize("field", [{"keep": 0.3}, {"per": "batch"}])
def test_a_gate_refuses_what_would_have_no_effect(field):
    with pytest.raises(ValidationError, match="no effect"):
        ByLogprob(choose="gate", **field)


@pytest.mark.parametrize("keep", [0, -0.1, 1.01, float("nan")])
def test_a_share_outside_its_range_is_refused(keep):
    with pytest.raises(ValidationError, match="keep"):
        ByLogprob(keep=keep)


def test_a_draw_takes_what_has_weight_before_what_has_none():
    assert chosen([0, 0, 1e-6, 0, 2, 0], choose="sample", keep=0.34) == [0, 0, 1, 0, 1, 0]


@pytest.mark.parametrize("choose", ["top", "bottom", "sample", "gate"])
def test_a_score_that_is_not_a_number_shows_in_the_weights(choose):
    weights = chosen([1, float("nan"), 2, 3], choose=choose)
    assert [w != w for w in weights] == [False, True, False, False]


def test_the_noise_is_standard_gumbel():
    noise_C = gumbel(token_table([20000], {}), draw)
    assert abs(noise_C.mean() - 0.5772) < 4 * 1.2826 / 20000**0.5
    assert abs(noise_C.std() - 1.2826) < 0.05


def test_the_noise_of_a_rollout_is_its_own():
    whole = gumbel(token_table([3, 5], {}), draw)
    assert torch.equal(whole[3:], gumbel(token_table([5], {}, [1]), draw))
    assert not torch.equal(whole[:3], whole[3:6])
