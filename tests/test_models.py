"""What real checkpoints do that tiny text models don't: towers for images, layers unlike, names of their own."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    Ernie4_5_MoeConfig,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    GenerationConfig,
    Lfm2Config,
    Mistral3Config,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
)

from opd.attention import settle_attention
from opd.doctor import check_context
from opd.errors import ModelError, RecipeError
from opd.lora import serving_warning
from opd.models import (
    as_stored,
    carries_state,
    check_one_dtype,
    empty_model,
    freeze_beside,
    load_model,
    of_layers,
    processor_files,
    stored_model,
    token_count,
    training_context,
)
from opd.student import Student
from recipes.quickstart.make_models import character_tokenizer
from tests import cases
from tests.test_architectures import FAMILIES, LINEAR, SIZE, made

TOWER = {"hidden_size": 16, "intermediate_size": 16, "patch_size": 14}
GEMMA3 = Gemma3Config(
    text_config=FAMILIES["gemma3"].to_dict(),
    vision_config=TOWER | {"num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28},
    mm_tokens_per_image=1,
)
QWEN3_5 = Qwen3_5Config(
    text_config=SIZE | LINEAR,
    vision_config=TOWER | {"depth": 1, "num_heads": 2, "out_hidden_size": 32, "num_position_embeddings": 16},
)
COMPOSITE = {"gemma3": Gemma3ForConditionalGeneration(GEMMA3), "qwen3.5": Qwen3_5ForConditionalGeneration(QWEN3_5)}
LONGROPE = Phi3Config(
    **SIZE | {"max_position_embeddings": 64},
    original_max_position_embeddings=16,
    rope_scaling={"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0] * 4},
)


@pytest.mark.parametrize("config", [*FAMILIES.values(), GEMMA3, QWEN3_5], ids=lambda config: config.model_type)
def test_auto_attention_settles_for_every_family(config: PreTrainedConfig):
    settled = settle_attention(cases.recipe(precision="bf16"), config, config)
    assert settled.student.attention == settled.teacher.attention != "auto"


def test_a_setting_may_differ_from_layer_to_layer():
    assert of_layers(FAMILIES["gemma4"], "head_dim") == [8, 32]
    assert of_layers(FAMILIES["llama"], "head_dim") == [8] and of_layers(FAMILIES["llama"], "no such") == []


def test_positions_that_depend_on_the_longest_of_a_batch_bound_a_rollout():
    """LongRoPE: above its original length all positions of a micro-batch turn by other factors."""
    assert training_context(LONGROPE)[0] == 16 and training_context(FAMILIES["llama"]) == (64, "at most")
    with pytest.raises(RecipeError, match="reads 16 tokens before LongRoPE stretches its positions"):
        check_context(cases.recipe("soft_or_batch"), LONGROPE, "phi")


def test_special_tokens_beyond_the_head_are_no_tokens_of_it():
    tokenizer = character_tokenizer()
    tokens = len(tokenizer)
    assert token_count(tokenizer, tokens) == token_count(tokenizer, tokens + 5) == tokens
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    assert token_count(tokenizer, tokens) == tokens and token_count(tokenizer, tokens + 1) == tokens + 1
    assert token_count(tokenizer, tokens - 1) == tokens, "a character that the head lacks is not passed over"


def test_layers_beside_attention_carry_a_state():
    conv = Lfm2Config(**SIZE | {"num_hidden_layers": 2}, layer_types=["conv", "full_attention"])
    assert carries_state(conv) and carries_state(FAMILIES["qwen3.5"])
    assert not any(carries_state(FAMILIES[name]) for name in ("llama", "gemma2", "gemma4", "qwen3-moe"))


@pytest.mark.parametrize("family", COMPOSITE)
def test_a_composite_checkpoints_weights_go_out_by_its_own_names(family: str, tmp_path: Path):
    """vLLM reads the checkpoint's class, whatever transformers made of its text."""
    COMPOSITE[family].save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        names = {name for name in file.keys() if family != "qwen3.5" or "visual" not in name}  # noqa: SIM118
    model = load_model(str(tmp_path), dtype=torch.float32)
    streamed = dict(as_stored(stored_model(str(tmp_path)), Student(model, tokens=37).weights()))
    assert set(streamed) == names


def test_a_tower_for_images_does_not_train():
    model = made_like(COMPOSITE["gemma3"])
    freeze_beside(model)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen and all("vision_tower" in name or "multi_modal_projector" in name for name in frozen)
    freeze_beside(text := made("llama", 0))
    assert all(p.requires_grad for p in text.parameters())


def made_like(model: PreTrainedModel) -> PreTrainedModel:
    return AutoModelForCausalLM.from_config(model.config)


def test_a_weight_that_a_checkpoint_lacks_is_named(toy: Path, tmp_path: Path):
    shutil.copytree(toy / "student", tmp_path, dirs_exist_ok=True)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 of its weights \(model\.norm\.weight\), which would be random"):
        load_model(str(tmp_path), dtype=torch.float32)


def test_parameters_of_another_dtype_are_refused(tmp_path: Path):
    """DeepSpeed would round ERNIE's routers, which transformers keeps in fp32."""
    config = Ernie4_5_MoeConfig(**SIZE, moe_num_experts=4, moe_k=2, moe_intermediate_size=24, moe_layer_start_index=0)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(tmp_path)
    check_one_dtype(load_model(str(tmp_path), dtype=torch.float32), torch.float32, "ernie")
    with pytest.raises(ModelError, match=r"'ernie' keeps model\.layers\.0\.mlp\.gate.* in float32.*precision: fp32"):
        check_one_dtype(load_model(str(tmp_path), dtype=torch.bfloat16), torch.bfloat16, "ernie")


def test_what_transformers_reads_no_text_of_is_refused():
    with pytest.raises(ModelError, match="no 'mistral3' as a causal language model"):
        empty_model(Mistral3Config())


def test_a_processors_files_go_along(tmp_path: Path):
    """With a model of more than text alone; most text models have none, and asking the hub takes time."""
    (tmp_path / "preprocessor_config.json").write_text('{"size": 28}')
    assert processor_files(COMPOSITE["gemma3"], str(tmp_path), None) == [tmp_path / "preprocessor_config.json"]
    assert processor_files(made("llama", 0), "no-such/model", None) == []


def test_generation_settings_that_transformers_loads_but_does_not_write_are_written(tmp_path: Path):
    """Sampling settings without do_sample, as many fine-tunes of Llama 2 have them."""
    model = made("llama", 0)
    model.generation_config = GenerationConfig(temperature=0.9, top_p=0.6, eos_token_id=2)
    Student(model, tokens=37).export(tmp_path, character_tokenizer(), ends=[2, 5], writes=True)
    stored = GenerationConfig.from_pretrained(tmp_path)
    assert (stored.do_sample, stored.temperature, stored.eos_token_id) == (True, 0.9, [2, 5])
    Student(made("llama", 0), tokens=37).export(tmp_path / "plain", character_tokenizer(), writes=True)
    assert not GenerationConfig.from_pretrained(tmp_path / "plain").do_sample


@pytest.mark.parametrize("refused", [{"pad_token_id": -1}, {"early_stopping": True}])
def test_of_generation_settings_that_no_sampling_mends_only_the_ids_are_written(refused: dict, tmp_path: Path):
    model = made("llama", 0)
    model.generation_config = GenerationConfig(**{"temperature": 0.9, "bos_token_id": 1, "pad_token_id": 0} | refused)
    Student(model, tokens=37).export(tmp_path, character_tokenizer(), ends=[2, 5], writes=True)
    stored = GenerationConfig.from_pretrained(tmp_path)
    assert (stored.bos_token_id, stored.eos_token_id) == (1, [2, 5])
    assert stored.pad_token_id == (None if "pad_token_id" in refused else 0)
    assert stored.temperature == (0.9 if "pad_token_id" in refused else None), "an id below 0 is no reason to lose it"


def test_an_adapter_that_vllm_would_not_find_is_said():
    stored = Qwen3_5Config(**QWEN3_5.to_dict() | {"architectures": ["Qwen3_5ForConditionalGeneration"]})
    assert "serve model/merged/" in serving_warning(stored, adapted=True)
    own = made("llama", 0).config
    own.architectures = ["LlamaForCausalLM"]
    assert serving_warning(stored, adapted=False) is None is serving_warning(own, adapted=True)
