"""A frozen model beside the student."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn
from transformers import PreTrainedModel

from opd.batch import Batch, Rollout
from opd.lora import effective_weight
from opd.reading import backbone, head_weights, trained_states
from opd.teacher.base import TeacherScores
from opd.vocab_ranks import RankShard


class LocalTeacher:
    """Last hidden states at trained positions, and the teacher's own head: exact whole distributions.

    shard: the part of the vocabulary whose rows of the head stay; the model gives the others' memory back, unless its
    head is its embedding, which needs them all.
    """

    def __init__(self, model: PreTrainedModel, shard: RankShard | None = None) -> None:
        self.model, self.shard = model, shard
        linear = model.get_output_embeddings()
        if shard is not None:
            keep_rows(linear, shard.start, shard.stop)
        bias_V = None if linear.bias is None else linear.bias.data
        weight_VH = effective_weight(linear).detach()
        self.head = replace(head_weights(weight_VH, bias_V, model.config), start=shard.start if shard else 0)
        self.vocabulary = self.head.vocabulary if shard is None else shard.vocabulary

    def start(self, rollouts: list[Rollout]) -> None:
        """Nothing: this teacher works batch by batch."""

    @torch.no_grad()
    def score(self, batch: Batch) -> TeacherScores:
        return TeacherScores(trained_states(backbone(self.model), batch)[0], self.head, self.shard)


def keep_rows(linear: nn.Linear, start: int, stop: int) -> None:
    """Rows start … stop of a frozen layer in place of all, as new parameters: who shares the old ones keeps them."""
    for name in ("weight", "bias"):
        if (whole := getattr(linear, name)) is not None:
            setattr(linear, name, nn.Parameter(whole.data[start:stop].clone(), requires_grad=False))
    linear.out_features = stop - start
