"""A task's reward, to mix with distillation."""

from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from opd.batch import TokenTable
from opd.objectives.base import ChosenObjective, mean_over


class TaskReward(ChosenObjective):
    """−A·log p_S(y), A the rollout's group-normalised reward, mean over the retained tokens, nats.

    GRPO's surrogate without clip (arXiv 2402.03300), for one update a batch. Zero where all rollouts of a prompt earn
    the same; `advantage: reward` in the recipe, and more than one sample a prompt.
    """

    type: Literal["task_reward"] = "task_reward"
    is_policy_gradient: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("student_logprob", "advantage")

    def loss(self, log_p_CK: Float[Tensor, "C 1"], table: TokenTable, weight_C: Float[Tensor, " C"]) -> Tensor:
        advantage_C = table.advantage_B[table.rollout_C].to(log_p_CK)
        return mean_over(-advantage_C * log_p_CK.squeeze(-1), weight_C)
