"""One tile of rows: both models' log-probabilities over the outcomes, and the way back from slopes to logits.

Never more than a tile exists at once. Where a stop class is given, its columns are one outcome before any statistic or
objective sees them: the class stands in its first column, its other columns have probability 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from opd.head.settings import LEAST, HeadSettings
from opd.head.statistics import top
from opd.head.weights import HiddenStates, whole_teacher


@dataclass(frozen=True)
class TopScores:
    """What a top-k teacher says: its listed ids [N, K] and their log-probabilities; −1 and −inf where a list ends."""

    id_NK: Int[Tensor, "N K"]
    logprob_NK: Float[Tensor, "N K"]

    def __len__(self) -> int:
        return self.id_NK.shape[0]


class Tile:
    """Rows of student and teacher under one setting; each distribution is computed when it is first asked for."""

    def __init__(
        self,
        rows_n: Int[Tensor, " n"],
        student: HiddenStates,
        teacher: HiddenStates | TopScores | None,
        token_id_N: Int[Tensor, " N"],
        settings: HeadSettings,
        weak_MH: Float[Tensor, "M H"] | None = None,
    ) -> None:
        self.rows_n, self.settings = rows_n, settings
        self.logits_nV = student.logits(rows_n)
        self.raw_token_id_n = token_id_N[rows_n]
        self._student, self._teacher, self._weak_MH = student, teacher, weak_MH
        self._log_probs: dict[tuple[str, float], Tensor] = {}
        self.stop = torch.tensor(settings.stop, dtype=torch.long, device=rows_n.device)
        self.merges = settings.merges

    @property
    def token_id_n(self) -> Int[Tensor, " n"]:
        """The sampled outcome of each row."""
        return self.settings.outcome_of(self.raw_token_id_n)

    @cached_property
    def weak_logits_nV(self) -> Float[Tensor, "n V"]:
        """Logits of the middle layer, through the student's own head; the last layer's where none was given."""
        if self._weak_MH is None or not len(self._weak_MH):
            return self.logits_nV
        return self._student.head.logits(self._weak_MH[self.rows_n])

    def student(self, temperature: float | None = None) -> Float[Tensor, "n V"]:
        """log p_S of every outcome, at the settings' temperature or another."""
        return self._at("student", self.settings.temperature if temperature is None else temperature)

    def teacher(self, temperature: float | None = None) -> Float[Tensor, "n V"]:
        """log p_T of every outcome; ValueError where there is no teacher's distribution."""
        return self._at("teacher", self.settings.temperature if temperature is None else temperature)

    @cached_property
    def teacher_top(self) -> Int[Tensor, " n"]:
        """The teacher's likeliest outcome."""
        return self.teacher().argmax(-1)

    def teacher_list(self, k: int) -> tuple[Int[Tensor, "n K"], Float[Tensor, "n K"]]:
        """The teacher's k likeliest outcomes and their log-probabilities; a top-k teacher's own list, as it is."""
        if isinstance(self._teacher, TopScores):
            if self.settings.temperature != 1.0 or self.merges:
                raise ValueError("a top-k teacher's list knows temperature 1 and no stop class only")
            return self._teacher.id_NK[self.rows_n], self._teacher.logprob_NK[self.rows_n].to(self.logits_nV)
        id_nK = top(self.teacher(), k)
        return id_nK, self.teacher().gather(-1, id_nK)

    def happens(self) -> Bool[Tensor, "n V"]:
        """Outcomes that one of the models does; all of them where a top-k teacher leaves it open."""
        if isinstance(self._teacher, TopScores):
            return torch.ones_like(self.logits_nV, dtype=torch.bool)
        return (self.student() > LEAST / 2) | (self.teacher() > LEAST / 2)

    def spread(self, grad_nV: Float[Tensor, "n V"], temperature: float) -> Float[Tensor, "n V"]:
        """From the gradient with respect to outcomes to that with respect to the raw logits, over the temperature.

        In place; a column i of a merged outcome b gets its share p_i / P_b of the outcome's gradient.
        """
        if self.merges:
            share_ns = (self.logits_nV[:, self.stop] / temperature).clamp(LEAST).softmax(-1)
            grad_nV[:, self.stop] = share_ns * grad_nV[:, self.stop[:1]]
        return grad_nV if temperature == 1.0 else grad_nV / temperature

    def _at(self, who: str, temperature: float) -> Tensor:
        if (who, temperature) not in self._log_probs:
            logits_nV = self.logits_nV if who == "student" else whole_teacher(self._teacher).logits(self.rows_n)
            log_p_nV = self._merged(torch.log_softmax(logits_nV / temperature, dim=-1))
            self._log_probs[who, temperature] = log_p_nV.clamp_(LEAST)
        return self._log_probs[who, temperature]

    def _merged(self, log_p_nV: Tensor) -> Tensor:
        if self.merges:
            whole_n = log_p_nV[:, self.stop].logsumexp(-1)
            log_p_nV[:, self.stop] = -torch.inf
            log_p_nV[:, self.stop[0]] = whole_n
        return log_p_nV
