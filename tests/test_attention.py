"""What `attention: auto` takes: flash-attention only where all that it needs is there, and for both models."""

import pytest
from transformers import GptOssConfig, LlamaConfig

from opd.attention import FLASH, settle_attention
from opd.config import Recipe
from opd.recipe_text import parse_recipe
from tests.test_architectures import FAMILIES, SIZE

LLAMA, QWEN, CAPPED, LINEAR = (FAMILIES[name] for name in ("llama", "qwen2", "gemma2", "qwen3.5"))
WIDE, OSS = LlamaConfig(**SIZE | {"head_dim": 512}), GptOssConfig(**SIZE, num_local_experts=2)
"""Heads that flash-attention can't do; an architecture with kernels of its own, and without sdpa."""


def recipe(student: str, teacher: str, precision: str) -> Recipe:
    return parse_recipe(
        {
            "student": {"model": "s", "attention": student},
            "teacher": {"model": "t", "attention": teacher},
            "prompts": {"path": "p.jsonl"},
            "loss": [{"objective": {"type": "reverse_kl"}}],
            "precision": precision,
        }
    )


@pytest.mark.parametrize(
    ("asked", "models", "lacks", "taken"),
    [
        (("auto", "auto"), (LLAMA, QWEN), None, (FLASH, FLASH)),
        (("auto", "auto"), (LLAMA, QWEN), "flash_attn", ("sdpa", "sdpa")),
        (("auto", "auto"), (LLAMA, QWEN), "ampere", ("sdpa", "sdpa")),
        (("auto", "auto"), (LLAMA, QWEN), "short weights", ("sdpa", "sdpa")),
        (("auto", "auto"), (LLAMA, WIDE), None, ("sdpa", "sdpa")),
        (("auto", "auto"), (CAPPED, LLAMA), "flash_attn", ("eager", "sdpa")),
        (("auto", "auto"), (CAPPED, LLAMA), None, (FLASH, FLASH)),
        (("auto", "auto"), (LLAMA, LINEAR), None, ("sdpa", "sdpa")),
        (("auto", "auto"), (OSS, OSS), None, ("eager", "eager")),
        (("sdpa", "auto"), (LLAMA, QWEN), None, ("sdpa", "sdpa")),
        (("auto", "eager"), (LLAMA, QWEN), None, ("sdpa", "eager")),
        ((FLASH, "auto"), (LLAMA, QWEN), None, (FLASH, FLASH)),
    ],
)
def test_auto_takes(asked, models, lacks, taken, monkeypatch):
    monkeypatch.setattr("opd.attention.is_flash_attn_2_available", lambda: lacks != "flash_attn")
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: (7, 5) if lacks == "ampere" else (9, 0))
    settled = settle_attention(recipe(*asked, "fp32" if lacks == "short weights" else "bf16"), *models)
    assert (settled.student.attention, settled.teacher.attention) == taken
