"""Loading causal language models, and the two things that we need of one: its backbone, and its head's weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from opd.batch import Batch
from opd.errors import ModelError
from opd.head.weights import HeadWeights

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32, "fp64": torch.float64}


def load_config(model: str, revision: str | None = None) -> Any:
    """The model's configuration; ModelError in one line if there is none."""
    return _loaded(AutoConfig, model, revision)


def load_tokenizer(model: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The model's tokenizer; ModelError in one line if there is none."""
    return _loaded(AutoTokenizer, model, revision)


def load_model(
    model: str, *, dtype: torch.dtype, attention: str = "sdpa", revision: str | None = None
) -> PreTrainedModel:
    """The causal language model in `dtype`, on the CPU; ModelError in one line if it can't be loaded."""
    return _loaded(AutoModelForCausalLM, model, revision, dtype=dtype, attn_implementation=attention)


def _loaded(kind: Any, model: str, revision: str | None, **settings: Any) -> Any:
    if model.startswith((".", "/", "~")) and not Path(model).is_dir():
        raise ModelError(f"there is no model folder {model!r}; give a local folder, or an id on the hub")
    try:
        return kind.from_pretrained(model, revision=revision, trust_remote_code=False, **settings)
    except (OSError, ValueError, ImportError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(
            f"can't load {model!r} ({reason}); give a local folder or a hub id that this machine reaches"
        ) from None


def text_config(config: Any) -> Any:
    """The part of a configuration that describes the language model."""
    return config.get_text_config()


def backbone(model: PreTrainedModel) -> nn.Module:
    """Everything below the lm_head."""
    return model.get_decoder()


def head_weights(weight_VH: Tensor, bias_V: Tensor | None, config: Any) -> HeadWeights:
    """The lm_head as mathematics: its weights, with the caps and scales that the configuration names."""
    text = text_config(config)
    scale = (getattr(text, "logit_scale", None) or 1.0) / (getattr(text, "logits_scaling", None) or 1.0)
    return HeadWeights(weight_VH, bias_V, softcap=getattr(text, "final_logit_softcapping", None), scale=scale)


def trained_states(
    backbone: nn.Module, batch: Batch, layer_share: float | None = None
) -> tuple[Float[Tensor, "C H"], Float[Tensor, "C H"] | None]:
    """Last hidden states at the positions that predict the batch's trained tokens, and a middle layer's or None.

    layer_share: depth of the middle layer, whose states pass the final norm as the last ones do.
    """
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
    middle = out.hidden_states[max(1, round(layer_share * layers))]
    return last_CH, backbone.norm(middle.flatten(0, 1)[batch.source_C])


def token_count(tokenizer: PreTrainedTokenizerBase) -> int:
    """One more than the largest token id: rows of an lm_head beyond it are padding."""
    return max(tokenizer.get_vocab().values()) + 1


def dropout_rates(config: Any) -> dict[str, float]:
    """Settings of the configuration that name a dropout rate above 0."""
    values = text_config(config).to_dict()
    return {
        k: v for k, v in values.items() if ("dropout" in k or k.endswith("pdrop")) and isinstance(v, float) and v > 0
    }
