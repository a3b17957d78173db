"""Reverse KL from sampled tokens alone, as a policy gradient."""

from typing import Annotated, ClassVar, Literal

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from opd.batch import TokenTable
from opd.objectives.base import ChosenObjective, mean_over


class SampledReverseKL(ChosenObjective):
    """−A·log p_S(y), A = log p_T(y) − log p_S(y) without gradient, mean over the retained tokens, nats.

    Its expectation over y ~ p_S is ∇KL(S‖T); differentiating log p_S − log p_T itself has expectation 0. The value is a
    surrogate: watch `sampled_reverse_kl` among the metrics. Needs the sampler's temperature to be the loss's.
    """

    type: Literal["sampled_reverse_kl"] = "sampled_reverse_kl"
    is_policy_gradient: ClassVar[bool] = True
    baseline: Literal["none", "full_kl"] = "none"
    """full_kl adds KL(S‖T) to A, whose expectation is −KL(S‖T): same mean, less variance, and a dense teacher."""
    clip: Annotated[float, Field(gt=0, lt=1)] | None = None
    """PPO's ε on the ratio p_S(y)/p_sampler(y) (arXiv 1707.06347, Eq. 7); null takes no ratio."""

    @property
    def needs(self) -> tuple[str, ...]:
        more = [name for name, asked in self._optional.items() if asked]
        return ("student_logprob", "teacher_logprob", *more)

    @property
    def _optional(self) -> dict[str, bool]:
        return {"reverse_kl": self.baseline == "full_kl", "trainer_logprob": self.clip is not None}

    def loss(self, log_p_CK: Float[Tensor, "C 1"], table: TokenTable, weight_C: Float[Tensor, " C"]) -> Tensor:
        log_p_C = log_p_CK.squeeze(-1)
        advantage_C = table["teacher_logprob"].to(log_p_C) - log_p_C.detach()
        if self.baseline == "full_kl":
            advantage_C = advantage_C + table["reverse_kl"].to(log_p_C)
        if self.clip is None:
            return mean_over(-advantage_C * log_p_C, weight_C)
        drift_C = (table["trainer_logprob"] - table.sampler_logprob_C).to(log_p_C)
        ratio_C = (drift_C + log_p_C - log_p_C.detach()).exp()
        clipped_C = ratio_C.clamp(1 - self.clip, 1 + self.clip)
        return mean_over(-(ratio_C * advantage_C).minimum(clipped_C * advantage_C), weight_C)
