"""The student's own candidates, in the teacher's order."""

from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import PositiveInt
from torch import Tensor

from opd.batch import TokenTable
from opd.head.settings import LEAST
from opd.objectives.base import ChosenObjective, mean_over


class PlackettLuce(ChosenObjective):
    """−Σ_{j≤k} [z_π(j) − log Σ_{l≥j} exp z_π(l)], π the student's top k in the teacher's order, best first; nats.

    Mean over the retained tokens (the paper writes a sum). z: the student's logits; the gradient runs through them, not
    through choice or order. k = 2 is Bradley–Terry. TSD-KD's Indirect, arXiv 2603.13260; its public code ranks the
    wrong way round. It says nothing about how *sure* the teacher is.
    """

    type: Literal["plackett_luce"] = "plackett_luce"
    needs: ClassVar[tuple[str, ...]] = ("candidate_id", "candidate_student_logprob", "candidate_teacher_logprob")
    reads_teacher: ClassVar[bool] = True
    token_ids: ClassVar[str | None] = "candidate_id"
    logprobs: ClassVar[str] = "candidate_student_logprob"
    k: PositiveInt = 10
    """Candidates: the student's k likeliest tokens."""

    @property
    def candidates(self) -> int:
        return self.k

    def loss(self, log_p_CK: Float[Tensor, "C K"], table: TokenTable, weight_C: Float[Tensor, " C"]) -> Tensor:
        by_id_Ck = table["candidate_id"][:, : self.k].argsort(dim=-1)
        teacher_Ck = table["candidate_teacher_logprob"][:, : self.k].to(log_p_CK).gather(-1, by_id_Ck)
        order_Ck = by_id_Ck.gather(-1, teacher_Ck.sort(dim=-1, descending=True, stable=True).indices)
        z_Ck = log_p_CK[:, : self.k].gather(-1, order_Ck).clamp_min(LEAST)  # one that can't happen pays 0
        z_Ck = torch.where(teacher_Ck.isnan(), teacher_Ck, z_Ck)  # no order: the loss shows it
        rest_Ck = z_Ck.flip(-1).logcumsumexp(-1).flip(-1)
        return mean_over((rest_Ck - z_Ck).sum(-1), weight_C)
