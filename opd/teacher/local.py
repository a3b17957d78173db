"""A frozen model beside the student."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from opd.batch import Batch, Rollout
from opd.reading import backbone, head_weights, trained_states
from opd.teacher.base import TeacherScores


class LocalTeacher:
    """Last hidden states at trained positions, and the teacher's own head: exact whole distributions."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        linear = model.get_output_embeddings()
        self.head = head_weights(linear.weight.data, None if linear.bias is None else linear.bias.data, model.config)

    def start(self, rollouts: list[Rollout]) -> None:
        """Nothing: this teacher works batch by batch."""

    @torch.no_grad()
    def score(self, batch: Batch) -> TeacherScores:
        return TeacherScores(trained_states(backbone(self.model), batch)[0], self.head)
