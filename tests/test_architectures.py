"""Each family of models, tiny and random: the step's loss and gradient are the plain model's, and its export loads.

Full and with adapters; what families do to logits (caps, scales), embeddings, norms, windows and experts is in it.
EVERY_CASE=1 loads each export in vLLM too, rather than two of them.
"""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    Gemma3TextConfig,
    Gemma4TextConfig,
    Glm4MoeConfig,
    GraniteConfig,
    LlamaConfig,
    MixtralConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3_5TextConfig,
    Qwen3Config,
    Qwen3MoeConfig,
    SmolLM3Config,
)

from opd.attention import check_packing
from opd.distributed import Ranks
from opd.errors import ModelError, RecipeError
from opd.lora import LoraSettings, adapters, attach, check_adapters, plain_buffers
from opd.model_spec import ModelSettings
from opd.models import as_stored, empty_model, has_experts, stored_model
from opd.rollout.settings import RolloutSettings
from opd.rollout.start import start_engine
from opd.student import Student
from opd.teacher.local import LocalTeacher
from recipes.quickstart.make_models import character_tokenizer
from tests import cases, reference
from tests.launching import EVERY_CASE

SIZE = {
    "vocab_size": cases.VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
WINDOW = {"sliding_window": 4, "query_pre_attn_scalar": 8, "layer_types": ["sliding_attention", "full_attention"]}
PER_LAYER = {"vocab_size_per_layer_input": SIZE["vocab_size"], "tie_word_embeddings": True}
LINEAR = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
FAMILIES = {
    "llama": LlamaConfig(**SIZE),
    "smollm": LlamaConfig(**SIZE, tie_word_embeddings=True),
    "qwen2": Qwen2Config(**SIZE),
    "qwen3": Qwen3Config(**SIZE, tie_word_embeddings=True),
    "gemma2": Gemma2Config(**SIZE, **WINDOW, attn_logit_softcapping=2.0, final_logit_softcapping=3.0),
    "gemma3": Gemma3TextConfig(**SIZE, **WINDOW),
    "gemma4": Gemma4TextConfig(**SIZE, **WINDOW, global_head_dim=32, hidden_size_per_layer_input=4, **PER_LAYER),
    "granite": GraniteConfig(**SIZE, logits_scaling=2.0, embedding_multiplier=3.0, residual_multiplier=0.5),
    "cohere": CohereConfig(**SIZE, logit_scale=0.25),
    "qwen3-moe": Qwen3MoeConfig(**SIZE, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24),
    "qwen3.5": Qwen3_5TextConfig(**SIZE, **LINEAR),
    "smollm3": SmolLM3Config(**SIZE, no_rope_layers=[1, 0], tie_word_embeddings=True),
    "glm4-moe": Glm4MoeConfig(
        **SIZE, n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=24, first_k_dense_replace=1
    ),
    "mixtral": MixtralConfig(**SIZE, num_local_experts=4, num_experts_per_tok=2),
}


def kernels(family: str) -> dict[str, object]:
    """float64, and kernels that know it: sdpa leaves out Gemma 2's cap on attention, grouped products want float32."""
    config = FAMILIES[family]
    capped = getattr(config, "attn_logit_softcapping", None) is not None
    experts = {"experts_implementation": "eager"} if hasattr(config, "num_experts_per_tok") else {}
    return {"dtype": torch.float64, "attn_implementation": "eager" if capped else "sdpa"} | experts


def made(family: str, seed: int, **size: int) -> PreTrainedModel:
    """A random model of the family in float64, its distributions far from uniform; `size` changes its configuration."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(**FAMILIES[family].to_dict() | size) if size else deepcopy(FAMILIES[family])
    model = AutoModelForCausalLM.from_config(config, **kernels(family))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.3 * (SIZE["hidden_size"] / config.hidden_size) ** 0.5)
        for buffer in plain_buffers(model).values():
            buffer.uniform_(0.2, 0.8)
    return model


def learner(family: str, *, adapted: bool, **size: int) -> PreTrainedModel:
    """The student's model, with adapters on every layer that may have one where asked."""
    model = made(family, 1, **size)
    if adapted:
        layers = ["q_proj", "o_proj"] if family == "glm4-moe" else ["all-linear"]
        targets = layers if model.config.tie_word_embeddings else [*layers, "lm_head"]
        attach(model, LoraSettings(rank=2, alpha=3, targets=targets), ModelSettings(model="student"), seed=0)
        for adapter in adapters(model).values():
            torch.nn.init.normal_(adapter.lora_B, 0, 0.3)
    return model


def gradients(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """By shape-free names, so that a head of the trainer's and one of peft's compare."""
    return {n.replace(".default.weight", ""): p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("adapted", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_gradient_is_the_plain_models_and_the_export_loads(family: str, adapted: bool, tmp_path: Path):
    plain = learner(family, adapted=adapted)
    student, teacher = Student(deepcopy(plain), tokens=cases.VOCABULARY), made(family, 2).requires_grad_(False)
    run = cases.run(
        cases.recipe("soft_or_batch", token_budget=64),
        trainer=cases.PlainTrainer(student),
        teacher=LocalTeacher(teacher),
    )
    outcome = cases.taken(run, cases.rollouts())
    loss = reference.reverse_kl_loss(plain, teacher, cases.rollouts(), soft_or_share=0.5)
    loss.backward()
    assert outcome.metrics["loss"] == pytest.approx(loss.item(), rel=1e-6)
    assert cases.relative_error(gradients(student.model), gradients(plain)) < 1e-6

    student.export(tmp_path, character_tokenizer(), writes=True)
    stored = load_file(tmp_path / "model.safetensors")
    streamed = dict(as_stored(stored_model(str(tmp_path)), student.weights()))
    assert stored.keys() == streamed.keys() and all(torch.equal(stored[name], streamed[name]) for name in stored)
    loaded, ids = AutoModelForCausalLM.from_pretrained(tmp_path, **kernels(family)), torch.arange(37)[None]
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, plain(ids).logits, rtol=1e-9, atol=1e-9)


def test_adapters_that_would_land_on_experts_are_refused():
    """Beside experts there is a dense layer, or shared ones: peft takes the names of theirs for the experts'."""
    model, base = empty_model(FAMILIES["glm4-moe"]), ModelSettings(model="student")
    with pytest.raises(RecipeError, match=r"adapters of model\.layers\.0\.mlp\.down_proj, .* attention's layers alone"):
        check_adapters(model, LoraSettings(rank=2, targets=["all-linear"]), base)
    check_adapters(empty_model(FAMILIES["qwen3-moe"]), LoraSettings(rank=2, targets=["all-linear"]), base)


def test_an_engine_takes_what_a_checkpoint_holds_beside_parameters(tmp_path: Path):
    student = Student(made("gemma4", 1), tokens=cases.VOCABULARY)
    student.export(tmp_path, character_tokenizer(), writes=True)
    engine = start_engine(
        str(tmp_path), RolloutSettings(type="transformers"), Ranks(), dtype=torch.float64, max_tokens=64, stop=[2]
    )
    plain_buffers(student.model)["model.layers.0.layer_scalar"].fill_(0.9)
    engine.load(student.weights(), 1)
    assert float(engine.model.model.layers[0].layer_scalar) == 0.9


def test_a_state_that_runs_from_token_to_token_is_never_packed():
    recipe = cases.recipe("soft_or_batch")
    spec = recipe.student.model_copy(update={"attention": "flash_attention_2"})
    packed = recipe.model_copy(update={"student": spec})
    for allowed, family in ((recipe, "qwen3.5"), (packed, "qwen3")):
        check_packing(allowed, spec, FAMILIES[family])
    with pytest.raises(ModelError, match=r"linear attention, convolutions.*set student\.attention to sdpa"):
        check_packing(packed, spec, FAMILIES["qwen3.5"])


WIDE = {"hidden_size": 128, "head_dim": 32}
"""vLLM's attention on a CPU knows no heads of 8."""
ALWAYS = {("llama", True), ("qwen3", False)}
"""Untied with an adapter on the head, and tied in full; EVERY_CASE=1 runs the others."""
IN_VLLM = [
    pytest.param(
        family,
        adapted,
        marks=[] if (family, adapted) in ALWAYS else EVERY_CASE,
        id=f"{family}-{'merged' if adapted else 'full'}",
    )
    for family, config in FAMILIES.items()
    if not has_experts(config) and family not in ("qwen3.5", "smollm3")  # not tried in vLLM yet
    for adapted in (False, True)
]


@pytest.mark.engine
@pytest.mark.parametrize(("family", "adapted"), IN_VLLM)
def test_the_export_has_the_models_log_probs_in_vllm(family: str, adapted: bool, tmp_path: Path):
    """Of a fixed text in fp32, with adapters by peft's own forward: whoever exports them unmerged fails."""
    model, ids = learner(family, adapted=adapted, **WIDE).float(), list(range(3, 36))
    with torch.no_grad():
        log_p_TV = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    Student(model, tokens=cases.VOCABULARY).export(tmp_path, character_tokenizer(), writes=True)
    settings = RolloutSettings(type="vllm", kv_cache_mib=64)
    engine = start_engine(str(tmp_path), settings, Ranks(), dtype=torch.float32, max_tokens=64, stop=[2])
    from vllm import SamplingParams

    asked = SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False)
    (output,) = engine.llm.generate([{"prompt_token_ids": ids}], asked, use_tqdm=False)
    engine.close()
    theirs = [entry[token].logprob for token, entry in zip(ids[1:], output.prompt_logprobs[1:], strict=True)]
    ours = log_p_TV[torch.arange(len(ids) - 1), torch.tensor(ids[1:])]
    print(f"{family}, {'merged' if adapted else 'full'}: {float((ours - torch.tensor(theirs)).abs().max()):.1e} nats")
    torch.testing.assert_close(torch.tensor(theirs), ours, rtol=0, atol=1e-4)
