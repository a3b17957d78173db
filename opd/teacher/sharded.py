"""A frozen model that the ranks hold in parts, by DeepSpeed's ZeRO-3, whatever stage the student is under."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from opd.distributed import gathered
from opd.head.weights import HeadWeights
from opd.model_spec import ModelSettings
from opd.models import load_model
from opd.reading import backbone, plain_head
from opd.teacher.local import LocalTeacher
from opd.teacher.offloaded import in_main_memory
from opd.vocab_ranks import RankShard


class ShardedTeacher(LocalTeacher):
    """A layer is whole on a rank while it runs or is about to; a whole head from the first score after a rest on.

    Each rank scores as many batches, empty ones too (`opd/packing.py` gives all as many): a score is collective. Scores
    that are out hold the head, which goes with the last of them.

    model, engine: as `load_sharded` gives them. offload: the rank's own rows of the head wait in main memory, as its
    parts of all else do by the engine's settings.
    """

    def __init__(
        self, model: PreTrainedModel, engine: Any, shard: RankShard | None = None, *, offload: bool = False
    ) -> None:
        super().__init__(model, shard)
        self.backbone, self.offload, self._head = engine, offload, None
        if shard is not None and offload:
            for parameter in model.get_output_embeddings().parameters():
                parameter.data = in_main_memory(parameter.data, engine.device)

    @property
    def head(self) -> HeadWeights:
        """The lm_head, put together on every rank, or the rank's own rows; collective the first time after a rest."""
        if self._head is None:
            with gathered(self.model.get_output_embeddings().parameters()):
                held = super().head
                stays = self.shard is not None and not self.offload
                self._head = held if stays else held.copy(self.backbone.device)
        return self._head

    def rest(self) -> None:
        self._head = None


def zero3(dtype: torch.dtype, *, offload: bool) -> dict[str, Any]:
    """DeepSpeed's settings for a frozen model in parts; offload: a rank's part waits in main memory.

    Parameters of every size are parted: DeepSpeed would keep those below 100,000 elements whole. Its default stays of
    how far ahead of the layer that runs it puts others together: 50 million elements.
    """
    zero = {"stage": 3, "stage3_param_persistence_threshold": 0}
    if offload:
        zero["offload_param"] = {"device": "cpu", "pin_memory": True}
    return {
        "zero_optimization": zero,
        "bf16": {"enabled": dtype == torch.bfloat16},
        "train_micro_batch_size_per_gpu": 1,
        "steps_per_print": 2**31,
    }


def load_sharded(spec: ModelSettings, dtype: torch.dtype, *, offload: bool) -> tuple[PreTrainedModel, Any]:
    """The frozen model, each parameter in parts over the ranks from the start, and its backbone as an engine.

    The engine's calls are the backbone's, and put each layer together while it runs: collective, as loading is.

    transformers makes it so: rank 0 reads the checkpoint's files, parameter by parameter, and the others get their
    parts from it, so that a device holds its part of the model and one or two parameters whole. Files are only mapped,
    but for experts that a checkpoint has one by one: all of them are put together in each rank's main memory first.
    """
    import deepspeed
    from transformers.integrations.deepspeed import HfDeepSpeedConfig, unset_hf_deepspeed_config

    settings = zero3(dtype, offload=offload)
    asked = HfDeepSpeedConfig(settings)  # transformers sees it as long as it lives
    try:
        model = load_model(spec.model, dtype=dtype, attention=spec.attention, revision=spec.revision)
    finally:
        unset_hf_deepspeed_config()
        del asked
    model.eval().requires_grad_(False)
    engine, *_ = deepspeed.initialize(model=backbone(model), config=settings)
    engine.eval()
    return model, engine


@contextmanager
def whole_head(model: PreTrainedModel) -> Iterator[None]:
    """The model with a copy of its lm_head that is whole on every rank, inside; collective."""
    held = plain_head(model)
    whole = nn.Linear(held.in_features, held.out_features, bias=held.bias is not None, device="meta")
    with gathered(held.parameters()):
        for name, parameter in held.named_parameters():
            setattr(whole, name, nn.Parameter(parameter.data.clone(), requires_grad=False))
    model.set_output_embeddings(whole)
    try:
        yield
    finally:
        model.set_output_embeddings(held)
