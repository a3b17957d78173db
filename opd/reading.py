"""How a model is read: its backbone, hidden states at the positions that matter, and its head as mathematics."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from opd.batch import Batch
from opd.errors import ModelError
from opd.head.weights import HeadWeights
from opd.lora import is_adapted_linear, is_linear
from opd.models import text_config
from opd.ulysses import pieces_read


def backbone(model: PreTrainedModel) -> nn.Module:
    """Everything below the lm_head."""
    return model.get_decoder()


def plain_head(model: PreTrainedModel) -> nn.Module:
    """The lm_head, a linear layer with or without a low-rank adapter; ModelError where it does more or is missing."""
    head = model.get_output_embeddings()
    if not (is_linear(head) or is_adapted_linear(head)):
        name = next((name for name, module in model.named_modules() if module is head), "the lm_head")
        raise ModelError(
            f"{name!r} is a {type(head).__module__}.{type(head).__qualname__}, which does more than multiply by its "
            "weight and a plain low-rank adapter's, and the loss head reads these alone; merge the adapter (peft: "
            "merge_and_unload), leave the head out of it, or load the model unquantized"
        )
    return head


def head_weights(weight_VH: Tensor, bias_V: Tensor | None, config: Any) -> HeadWeights:
    """The lm_head as mathematics: its weights, with the caps and scales that the configuration names."""
    text = text_config(config)
    scale = (getattr(text, "logit_scale", None) or 1.0) / (getattr(text, "logits_scaling", None) or 1.0)
    return HeadWeights(weight_VH, bias_V, softcap=getattr(text, "final_logit_softcapping", None), scale=scale)


def trained_states(
    backbone: nn.Module, batch: Batch, layer_share: float | None = None
) -> tuple[Float[Tensor, "C H"], Float[Tensor, "C H"] | None]:
    """Last hidden states at the positions that predict the batch's trained tokens, and a middle layer's or None.

    layer_share: depth of the middle layer, whose states pass the final norm as the last ones do. Raises ValueError for
    a piece where the model reads whole sequences, and for a whole one where it reads pieces.
    """
    if batch.pieces != (reads := pieces_read(backbone)):
        raise ValueError(f"a batch that is one of {batch.pieces} pieces, and a model that reads one of {reads}")
    wants_layers = layer_share is not None
    out = backbone(
        input_ids=batch.input_ids_SW,
        position_ids=batch.position_SW,
        use_cache=False,
        output_hidden_states=wants_layers,
    )
    last_CH = out.last_hidden_state.flatten(0, 1)[batch.source_C]
    if not wants_layers:
        return last_CH, None
    layers = len(out.hidden_states) - 1
    middle = out.hidden_states[min(max(1, round(layer_share * layers)), layers - 1)]
    return last_CH, backbone.norm(middle.flatten(0, 1)[batch.source_C])
