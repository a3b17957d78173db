import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GraniteConfig,
    LlamaConfig,
    PretrainedConfig,
    Qwen2Config,
)

from opd.batch import Rollout
from opd.head.weights import HeadWeights, align
from opd.packing import lay_out
from opd.reading import backbone, head_weights, trained_states
from tests.build import random_states
from tests.oracle import assert_close

SIZES = {
    "vocab_size": 31,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
CONFIGS = {
    "llama": LlamaConfig(**SIZES, tie_word_embeddings=False),
    "llama_tied": LlamaConfig(**SIZES, tie_word_embeddings=True),
    "qwen2": Qwen2Config(**SIZES),
    "gemma2": Gemma2Config(**SIZES, head_dim=8, final_logit_softcapping=0.2),
    "granite": GraniteConfig(**SIZES, logits_scaling=4.0),
    "cohere": CohereConfig(**SIZES, logit_scale=0.0625),
}


def made(config: PretrainedConfig, dtype: torch.dtype):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])
@pytest.mark.parametrize("name", CONFIGS)
def test_logits_equal_those_of_the_model(name, dtype):
    model = made(CONFIGS[name], dtype)
    ids = [1, 7, 30, 4, 4, 9]
    rollout = Rollout(ids, [False] * 2 + [True] * 4, [0.0] * 4, [0] * 4, finish="stop", group=0)
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0, 1:-1]
        hidden_CH, _ = trained_states(backbone(model), lay_out([rollout], [0], layout="rows"))
        linear = model.get_output_embeddings()
        found = head_weights(linear.weight, linear.bias, model.config).logits(hidden_CH)
    assert found.dtype == dtype
    assert_close(found, expected, 1e-12 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_middle_layer_passes_the_final_norm_once_and_is_never_the_last(share):
    model = made(CONFIGS["llama"], torch.float64)
    ids = [1, 7, 30, 4, 4, 9]
    batch = lay_out(
        [Rollout(ids, [False] * 2 + [True] * 4, [0.0] * 4, [0] * 4, finish="stop", group=0)], [0], layout="rows"
    )
    with torch.no_grad():
        layers = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
        last_CH, weak_CH = trained_states(backbone(model), batch, share)
        assert_close(last_CH, layers[-1][0, 1:-1], 1e-12)
        assert_close(weak_CH, model.model.norm(layers[1])[0, 1:-1], 1e-12)


@pytest.mark.parametrize("name", ["gemma2", "granite", "cohere"])
def test_what_a_model_does_to_its_logits_is_not_lost(name):
    given = random_states(2, 16, 31, seed=0)
    found = head_weights(given.head.weight_VH, None, CONFIGS[name]).logits(given.hidden_NH)
    plain = HeadWeights(given.head.weight_VH).logits(given.hidden_NH)
    assert not torch.allclose(found, plain, rtol=0.1)


@pytest.mark.parametrize("head", [{}, {"softcap": 2.0}, {"scale": 0.3}, {"softcap": 2.0, "scale": 0.3}], ids=str)
def test_product_gradient_is_the_chain_rule(head):
    student = random_states(3, 4, 6, seed=1, **head)
    bias_V = student.head.bias_V.clone().requires_grad_()
    logits_NV = HeadWeights(student.head.weight_VH, bias_V, **head).logits(student.hidden_NH)
    grad_NV = random_states(3, 6, 6, seed=2).hidden_NH
    (expected_V,) = torch.autograd.grad(logits_NV, bias_V, grad_NV)
    assert_close(student.head.product_gradient(logits_NV.detach(), grad_NV).sum(0), expected_V, 1e-13)


def test_bf16_logits_are_multiplied_in_float32():
    given = random_states(3, 8, 5, seed=0)
    hidden_NH, weight_VH = given.hidden_NH.bfloat16(), given.head.weight_VH.bfloat16()
    logits_NV = HeadWeights(weight_VH, scale=0.37).logits(hidden_NH)
    assert logits_NV.dtype == torch.float32
    assert_close(logits_NV, (hidden_NH.double() @ weight_VH.double().T) * 0.37, 1e-6)


def test_heads_of_equal_size_stay_whole():
    student, teacher = random_states(2, 3, 9, seed=1).head, random_states(2, 4, 9, seed=2).head
    assert align(student, teacher, 7) == (student, teacher)


@pytest.mark.parametrize(("ours", "theirs"), [(9, 12), (12, 9), (7, 12)])
def test_heads_of_unequal_padding_are_cut_to_the_smaller(ours, theirs):
    student, teacher = random_states(2, 3, ours, seed=1, softcap=2.0), random_states(2, 4, theirs, seed=2, scale=0.5)
    for states, cut in zip((student, teacher), align(student.head, teacher.head, 7), strict=True):
        assert cut.vocabulary == min(ours, theirs)
        assert_close(cut.logits(states.hidden_NH), states.head.logits(states.hidden_NH)[:, : min(ours, theirs)], 1e-14)


def test_a_head_smaller_than_the_tokenizer_is_refused():
    with pytest.raises(ValueError, match="10 tokens"):
        align(random_states(2, 3, 9, seed=1).head, random_states(2, 4, 12, seed=2).head, 10)
