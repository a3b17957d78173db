"""How much a rollout stands out among those of its prompt."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

EPSILON = 1e-4


def group_normalised(reward_B: Float[Tensor, " B"], group_B: Int[Tensor, " B"]) -> Float[Tensor, " B"]:
    """(r − mean)/(std + 1e-4) over all rollouts of a prompt, sample deviation; 0 where they are equal or there is one.

    D³S, arXiv 2509.22115, after GRPO, arXiv 2402.03300. Never normalised again after rollouts are dropped.

    >>> group_normalised(torch.tensor([1.0, 0.0, 5.0]), torch.tensor([0, 0, 1])).round(decimals=3)
    tensor([ 0.7070, -0.7070,  0.0000])
    """
    advantage_B = torch.zeros_like(reward_B)
    for group in group_B.unique():
        members = group_B == group
        rewards = reward_B[members]
        if len(rewards) > 1 and rewards.max() > rewards.min():
            advantage_B[members] = (rewards - rewards.mean()) / (rewards.std() + EPSILON)
    return advantage_B


def group_centred(score_B: Float[Tensor, " B"], group_B: Int[Tensor, " B"]) -> Float[Tensor, " B"]:
    """score − mean over the rollouts of a prompt: for the length-mean of log p_T − log p_S, which a sum would not be.

    >>> group_centred(torch.tensor([1.0, 0.0, 5.0]), torch.tensor([0, 0, 1])).tolist()
    [0.5, -0.5, 0.0]
    """
    centred_B = torch.zeros_like(score_B)
    for group in group_B.unique():
        members = group_B == group
        centred_B[members] = score_B[members] - score_B[members].mean()
    return centred_B
