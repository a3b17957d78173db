"""Loading causal language models, their configurations and tokenizers; an error is one line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import is_offline_mode
from torch import Tensor
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.core_model_loading import revert_weight_conversion
from transformers.utils import cached_file

from opd.errors import ModelError, reason_of

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32, "fp64": torch.float64}


def load_config(model: str, revision: str | None = None) -> Any:
    """The model's configuration; ModelError in one line if there is none."""
    return _loaded(AutoConfig, model, revision)


def load_tokenizer(model: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The model's tokenizer; ModelError in one line if there is none."""
    return _loaded(AutoTokenizer, model, revision)


def load_model(
    model: str, *, dtype: torch.dtype, attention: str = "auto", revision: str | None = None
) -> PreTrainedModel:
    """The causal language model in `dtype`, on the CPU; ModelError in one line if it can't be loaded.

    attention: its kernel; auto, which a checked recipe no longer has, is the plain one.
    """
    attention = plain_kernel(load_config(model, revision)) if attention == "auto" else attention
    settings = {"dtype": dtype, "attn_implementation": attention, "output_loading_info": True}
    loaded, info = _loaded(AutoModelForCausalLM, model, revision, **settings)
    if missing := sorted(info["missing_keys"]):
        raise ModelError(
            f"{model!r} lacks {len(missing)} of its weights ({', '.join(missing[:3])}{' …' * (len(missing) > 3)}), "
            "which would be random; fetch or write it again"
        )
    return loaded


def plain_kernel(config: Any) -> str:
    """sdpa, or eager for a model that sdpa would compute wrongly or not at all."""
    return "eager" if caps_attention(config) or not architecture(config)._supports_sdpa else "sdpa"


def architecture(config: Any) -> type[PreTrainedModel]:
    """The class of the causal language model that the configuration describes; the base of all where there is none."""
    found = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), PreTrainedModel)
    return found[0] if isinstance(found, (list, tuple)) else found


def empty_model(config: Any) -> PreTrainedModel:
    """The model that the configuration describes, all of its layers and no memory for their weights.

    ModelError where transformers knows no causal language model of that kind.
    """
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ModelError(
            f"transformers reads no {config.model_type!r} as a causal language model; take a model of text alone"
        )
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def stored_model(model: str, revision: str | None = None) -> PreTrainedModel:
    """The model without memory for its weights, which knows by what names its checkpoint has them."""
    return _loaded(AutoModelForCausalLM, model, revision, device_map="meta")


def freeze_beside(model: PreTrainedModel) -> None:
    """Leave what reads text to train: a tower for images or sound, which gets no gradient, would only decay."""
    reads = {id(p) for part in (model.get_decoder(), model.get_output_embeddings()) for p in part.parameters()}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in reads)


def check_one_dtype(model: PreTrainedModel, dtype: torch.dtype, name: str) -> None:
    """ModelError where transformers keeps some parameters in another dtype, which DeepSpeed would round to this one."""
    if kept := next((p for p in model.named_parameters() if p[1].dtype != dtype), None):
        raise ModelError(
            f"{name!r} keeps {kept[0]} in {str(kept[1].dtype).removeprefix('torch.')}, and training would round it; "
            "set precision: fp32"
        )


PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")


QUIETLY = {f"_raise_exceptions_for_{what}": False for what in ("missing_entries", "gated_repo", "connection_errors")}


def processor_files(loaded: PreTrainedModel, model: str, revision: str | None) -> list[Path]:
    """What a model of more than text needs beside weights and tokenizer: vLLM starts no Gemma 3 4B without it.

    Fetched from the hub the first time, so ask while the model is loaded, not when a long run ends.
    """
    if loaded.config is text_config(loaded.config):
        return []
    found = [cached_file(model, name, revision=revision, **QUIETLY) for name in PROCESSOR_FILES]
    return [Path(path) for path in found if path is not None]


def as_stored(stored: PreTrainedModel, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """A model's weights, one by one, as its checkpoint has them: of fused experts each by itself."""
    for name, tensor in weights:
        yield from revert_weight_conversion(stored, {name: tensor}).items()


def model_folder(model: str) -> Path:
    """Where the model's files lie here, fetched from the hub if need be; ModelError in one line."""
    load_config(model)
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, allow_patterns=["*.safetensors", "*.json", "*.jinja"]))
    except OSError as error:
        raise ModelError(f"can't fetch {model!r} ({error}); give a local folder, or try again") from None


def _loaded(kind: Any, model: str, revision: str | None, **settings: Any) -> Any:
    looks_local = model.startswith((".", "/", "~")) or model.count("/") > 1
    if looks_local and not Path(model).is_dir():
        raise ModelError(f"there is no model folder {model!r}; give a local folder, or an id on the hub")
    if (Path(model) / "adapter_config.json").is_file() and not (Path(model) / "config.json").is_file():
        raise ModelError(
            f"{model!r} holds an adapter and no model; give the merged one, which a run with student.lora.merge: true "
            "leaves in merged/ there, or merge it (peft: merge_and_unload)"
        )
    if (Path(model) / "recipe.yaml").is_file() and not (Path(model) / "config.json").is_file():
        raise ModelError(
            f"{model!r} is the folder of a run; its student is {model.rstrip('/')}/model once it has ended"
        )
    try:
        return kind.from_pretrained(model, revision=revision, trust_remote_code=False, **settings)
    except (OSError, ValueError, ImportError) as error:
        away = "; the hub is not asked, for HF_HUB_OFFLINE is set or its name does not resolve here"
        away = away if is_offline_mode() and not Path(model).is_dir() else ""
        raise ModelError(
            f"can't load {model!r} ({reason_of(error)}){away}; give a local folder or an id on the hub"
        ) from None
    except AssertionError as error:  # vLLM's, in place of the class's own start
        raise ModelError(
            f"can't load {model!r}: vLLM ran it by transformers' class before, and has altered that for this process "
            f"({reason_of(error)}); take --engine transformers, or rollout.type=transformers"
        ) from None


def text_config(config: Any) -> Any:
    """The part of a configuration that describes the language model."""
    return config.get_text_config()


def of_layers(config: Any, name: str) -> list[int]:
    """The values of a setting of which layers may each have their own (Gemma 4's head_dim), smallest first."""
    text = text_config(config)
    layers = text.per_layer_config if getattr(text, "is_heterogeneous", False) else [text]
    values = [getattr(layer, name, None) for layer in layers]
    flat = [v for value in values for v in (value if isinstance(value, (list, tuple)) else [value])]
    return sorted({v for v in flat if v is not None})


def context_length(config: Any) -> int | None:
    """Tokens that the model reads at most, where its configuration says it."""
    return getattr(text_config(config), "max_position_embeddings", None)


def training_context(config: Any) -> tuple[int | None, str]:
    """The same in training, and what to call it: LongRoPE's positions depend on the longest of a batch beyond it."""
    text = text_config(config)
    given = getattr(text, "rope_parameters", None) or {}
    if "longrope" in rope_types(config):
        own = given.get("original_max_position_embeddings")
        if own := own or getattr(text, "original_max_position_embeddings", None):
            return own, "before LongRoPE stretches its positions, as training must"
    return context_length(config), "at most"


def rope_types(config: Any) -> set[str]:
    """Kinds of rotary positions, of one set of parameters or of one for each type of layer."""
    given = getattr(text_config(config), "rope_parameters", None) or {}
    each = [given, *(part for part in given.values() if isinstance(part, dict))]
    return {part["rope_type"] for part in each if "rope_type" in part}


def token_count(tokenizer: PreTrainedTokenizerBase, rows: int) -> int:
    """One more than the largest token id: of the `rows` of an lm_head, those beyond it are padding.

    Special tokens beyond the rows do not count: Gemma 3 1B's tokenizer has one for images, which the model can't read.
    """
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return max(i for i in tokenizer.get_vocab().values() if i < rows or i not in special) + 1


def caps_attention(config: Any) -> bool:
    """Whether the model caps its attention scores (Gemma 2), which transformers' sdpa leaves out."""
    return getattr(text_config(config), "attn_logit_softcapping", None) is not None


def carries_state(config: Any) -> bool:
    """Whether some layers hand a state on past a packed border: Qwen3.5's linear attention, LFM2's convolution."""
    attends = {"full_attention", "sliding_attention", "chunked_attention"}
    types = getattr(text_config(config), "layer_types", None)
    return bool(set(types) - attends) if types else architecture(config)._is_stateful


def has_experts(config: Any) -> bool:
    """Whether some layer is a mixture of experts."""
    return any(name.endswith(".experts") for name, _ in empty_model(config).named_modules())


def biases_attention(config: Any) -> bool:
    """Whether attention is biased by distance (ALiBi): BLOOM always, Falcon and MPT where their settings say so."""
    text = text_config(config)
    settings = text, getattr(text, "attn_config", None)
    return text.model_type == "bloom" or any(getattr(each, "alibi", False) for each in settings)


def rotates_by_sections(config: Any) -> bool:
    """Whether positions have several parts, each of which turns its own section of a head (M-RoPE)."""
    text = text_config(config)
    settings = getattr(text, "rope_parameters", None), getattr(text, "rope_scaling", None)
    return any("mrope_section" in each for each in settings if each)


def dropout_rates(config: Any) -> dict[str, float]:
    """Settings of the configuration that name a rate above 0 at which activations or layers are dropped."""
    values = text_config(config).to_dict()
    named = {k: v for k, v in values.items() if "dropout" in k or k.endswith(("pdrop", "layerdrop"))}
    return {k: v for k, v in named.items() if isinstance(v, float) and v > 0}
