"""One vLLM engine over two gloo ranks samples what one on a single rank does, also after it took new weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from opd.distributed import Ranks
from recipes.quickstart.make_models import character_tokenizer
from tests.launching import accelerate
from tests.workers.tensor_parallel import sampled


def stored(folder: Path, seed: int) -> str:
    """A random Llama with two heads of keys and four of queries."""
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "max_position_embeddings": 64}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32}
    torch.manual_seed(seed)
    LlamaForCausalLM(LlamaConfig(vocab_size=17, **sizes, **heads, initializer_range=0.3)).save_pretrained(folder)
    character_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.mark.engine
def test_two_ranks_of_one_engine_sample_what_one_rank_does(tmp_path: Path):
    models = [stored(tmp_path / name, seed) for seed, name in enumerate(("start", "then"))]
    accelerate(tmp_path, "tests.workers.tensor_parallel", *models, str(tmp_path), ranks=2, stage=2)
    two, one = json.loads((tmp_path / "made.json").read_text()), sampled(Ranks(), *models)
    assert two["elements"] < 0.6 * one["elements"], "each rank holds its part of every matrix"
    for kind in ("greedy", "seeded"):
        assert [r["token_ids"] for r in two[kind]] == [r["token_ids"] for r in one[kind]], kind
        for ours, theirs in zip(two[kind], one[kind], strict=True):
            assert ours["logprobs"] == pytest.approx(theirs["logprobs"], abs=1e-4)
    assert len(two["unseeded"]) == 10 and two["alike"][0] == two["alike"][1]
    assert len({tuple(c["token_ids"]) for c in two["alike"][0]}) > 1
