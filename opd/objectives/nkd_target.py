"""NKD's target part: the target's own log-probability."""

from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from opd.batch import TokenTable
from opd.objectives.base import ChosenObjective, mean_over


class NKDTarget(ChosenObjective):
    """−T_t log S_t of the target t, nats, mean over the retained tokens. arXiv 2303.13005, Eq. 8.

    Its minimum is S_t = 1, not S = T: on the student's own samples it collapses entropy. `stationary` takes the binary
    KL T_t log(T_t/S_t) + (1−T_t) log((1−T_t)/(1−S_t)) instead, which is at rest where S = T.
    """

    type: Literal["nkd_target"] = "nkd_target"
    reads_teacher: ClassVar[bool] = True
    target: Literal["sampled", "teacher"] = "sampled"
    """The sampled token, or the teacher's likeliest."""
    stationary: bool = False
    """The binary KL in place of the paper's term."""

    @property
    def needs(self) -> tuple[str, ...]:
        if self.target == "sampled":
            return ("student_logprob", "teacher_logprob")
        return ("teacher_top_id", "teacher_top_student_logprob", "teacher_top_logprob")

    @property
    def token_ids(self) -> str | None:
        return None if self.target == "sampled" else "teacher_top_id"

    @property
    def logprobs(self) -> str:
        return "student_logprob" if self.target == "sampled" else "teacher_top_student_logprob"

    def loss(self, log_p_CK: Float[Tensor, "C 1"], table: TokenTable, weight_C: Float[Tensor, " C"]) -> Tensor:
        log_s_C = log_p_CK.squeeze(-1)
        name = "teacher_logprob" if self.target == "sampled" else "teacher_top_logprob"
        log_t_C = table[name].to(log_s_C)
        t_C = log_t_C.exp()
        value_C = -_times(t_C, log_s_C)
        if self.stationary:
            value_C = value_C + _times(t_C, log_t_C) + (1 - t_C) * (_log_rest(log_t_C) - _log_rest(log_s_C))
        return mean_over(value_C, weight_C)


def _times(p_C: Tensor, log_C: Tensor) -> Tensor:
    """p · log, and 0 where p is."""
    return torch.where(p_C == 0, 0, p_C * log_C)


def _log_rest(log_p_C: Tensor) -> Tensor:
    """log(1 − p); where p rounds to 1, the smallest difference from it."""
    return torch.log((-torch.expm1(log_p_C)).clamp_min(torch.finfo(log_p_C.dtype).eps))
