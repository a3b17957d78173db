"""A frozen model beside the student."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn
from transformers import PreTrainedModel

from opd.batch import Batch, Rollout
from opd.distributed import gathered, whole_shape
from opd.head.weights import HeadWeights
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
        self.model, self.shard, self.backbone = model, shard, backbone(model)
        linear = model.get_output_embeddings()
        self.vocabulary = whole_shape(linear.weight)[0] if shard is None else shard.vocabulary
        if shard is not None:
            keep_rows(linear, shard.start, shard.stop)

    @property
    def head(self) -> HeadWeights:
        """The lm_head as mathematics, or the rows of it that stay, where its weights are now."""
        linear, start = self.model.get_output_embeddings(), self.shard.start if self.shard else 0
        bias_V = None if linear.bias is None else linear.bias.data
        return replace(head_weights(effective_weight(linear).detach(), bias_V, self.model.config), start=start)

    def start(self, rollouts: list[Rollout]) -> None:
        """Nothing: this teacher works batch by batch."""

    @torch.no_grad()
    def score(self, batch: Batch) -> TeacherScores:
        return TeacherScores(trained_states(self.backbone, batch)[0], self.head, self.shard)

    def rest(self) -> None:
        """Nothing: this teacher's weights stay where they are."""


def keep_rows(linear: nn.Linear, start: int, stop: int) -> None:
    """Rows start … stop of a frozen layer in place of all, as new parameters: who shares the old ones keeps them.

    Collective where the ranks hold the layer in parts.
    """
    with gathered(linear.parameters()):
        for name in ("weight", "bias"):
            if (whole := getattr(linear, name)) is not None:
                setattr(linear, name, nn.Parameter(whole.data[start:stop].clone(), requires_grad=False))
    linear.out_features = stop - start
