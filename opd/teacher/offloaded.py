"""A frozen model that is in main memory between uses."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from opd.batch import Batch
from opd.teacher.base import TeacherScores
from opd.teacher.local import LocalTeacher
from opd.vocab_ranks import RankShard


class OffloadedTeacher(LocalTeacher):
    """Its weights come to the device with the first score after a rest, and leave it with the next rest.

    They never change, so main memory keeps them (pinned where the device is CUDA) and leaving copies nothing: the
    device's copy is let go. Scores that are out hold the head, which goes with the last of them.
    """

    def __init__(self, model: PreTrainedModel, device: torch.device, shard: RankShard | None = None) -> None:
        super().__init__(model, shard)
        self.device = device
        self.kept = {parameter: in_main_memory(parameter.data, device) for parameter in model.parameters()}
        self.is_here = False
        self.rest()

    def score(self, batch: Batch) -> TeacherScores:
        if not self.is_here:
            for parameter, kept in self.kept.items():
                parameter.data = kept.to(self.device, copy=True, non_blocking=True)
            self.is_here = True
        return super().score(batch)

    def rest(self) -> None:
        for parameter, kept in self.kept.items():
            parameter.data = kept
        self.is_here = False


def in_main_memory(weights: Tensor, device: torch.device) -> Tensor:
    """The weights in main memory, where copies to a CUDA device are fast."""
    weights = weights.cpu()
    return weights.pin_memory() if device.type == "cuda" else weights
