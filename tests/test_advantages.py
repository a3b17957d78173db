"""How much a rollout stands out in its group. D³S's golden vectors stand in tests/selection/test_d3s.py."""

import pytest
import torch

from opd.advantages import EPSILON, group_centred, group_normalised
from opd.plan import with_ratio_advantage, with_reward_advantage
from tests.build import recipe, token_table
from tests.oracle import assert_close

READS = {"select": {"type": "d3s"}, "objective": {"type": "reverse_kl"}}


def tensor(values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_a_group_is_normalised_by_its_sample_deviation():
    advantage_B = group_normalised(tensor([1, 0, 0, 0]), torch.zeros(4, dtype=torch.long))
    assert_close(advantage_B, [0.75 / (0.5 + EPSILON)] + [-0.25 / (0.5 + EPSILON)] * 3, 1e-12)


@pytest.mark.parametrize("rewards", [[0.3] * 4, [1.0], [0.0, 0.0]])
def test_equal_rewards_and_a_single_rollout_stand_out_by_nothing(rewards):
    assert group_normalised(tensor(rewards), torch.zeros(len(rewards), dtype=torch.long)).tolist() == [0.0] * len(
        rewards
    )


@pytest.mark.parametrize("advantage", [group_normalised, group_centred])
def test_a_group_does_not_see_the_others(advantage):
    score_B, group_B = tensor([1, 5, 0, 2, 7]), torch.tensor([3, 1, 3, 1, 3])
    whole = advantage(score_B, group_B)
    for group in (1, 3):
        members = group_B == group
        assert torch.equal(whole[members], advantage(score_B[members], group_B[members]))
        assert_close(whole[members].sum(), 0.0, 1e-12)


@pytest.mark.parametrize("advantage", [group_normalised, group_centred])
def test_no_rollouts_have_no_advantages(advantage):
    assert advantage(tensor([]), torch.zeros(0, dtype=torch.long)).tolist() == []


@pytest.mark.parametrize("advantage", [group_normalised, group_centred])
def test_a_missing_score_shows_in_its_group_alone(advantage):
    found = advantage(tensor([1, torch.nan, 0, 1]), torch.tensor([0, 0, 1, 1]))
    assert not found[2:].isnan().any() and found[1].isnan() | (found[:2] == 0).all()


def test_a_centred_group_keeps_its_unit():
    assert_close(group_centred(tensor([1, 3, 10]), torch.tensor([0, 0, 1])), [-1.0, 1.0, 0.0])


def ratio_table():
    """Two rollouts of one prompt: a short one that the teacher likes, a long one that it likes less a token."""
    columns = {"student_logprob": tensor([-1] * 6), "teacher_logprob": tensor([-0.5, -0.7, -0.8, -0.8, -0.8, -0.8])}
    return token_table([2, 4], columns, reward_B=tensor([0, 1]))


def test_the_log_ratio_is_a_mean_a_token_not_a_sum():
    found = with_ratio_advantage(recipe(READS, advantage="log_ratio"), ratio_table()).advantage_B
    assert_close(found, [0.1, -0.1], 1e-12)


def test_a_recipe_gets_the_advantage_that_it_asks_for_and_no_other():
    table, none = ratio_table(), recipe()
    reward, ratio = (recipe(READS, advantage=a) for a in ("reward", "log_ratio"))
    assert with_reward_advantage(reward, table).advantage_B.sign().tolist() == [-1, 1]
    assert with_ratio_advantage(ratio, table).advantage_B.sign().tolist() == [1, -1]
    for other, change in (
        (none, with_reward_advantage),
        (ratio, with_reward_advantage),
        (reward, with_ratio_advantage),
    ):
        assert change(other, table) is table
