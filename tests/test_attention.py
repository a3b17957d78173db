"""What `attention: auto` takes: flash-attention only where all that it needs is there, and for both models."""

import pytest

from opd.attention import FLASH, settle_attention
from opd.config import Recipe
from opd.recipe_text import parse_recipe
from tests.test_architectures import FAMILIES

LLAMA, QWEN, CAPPED, LINEAR = (FAMILIES[name] for name in ("llama", "qwen2", "gemma2", "qwen3.5"))


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
        (("auto", "auto"), (LLAMA, QWEN), "cuda", ("sdpa", "sdpa")),
        (("auto", "auto"), (LLAMA, QWEN), "package", ("sdpa", "sdpa")),
        (("auto", "auto"), (LLAMA, QWEN), "short weights", ("sdpa", "sdpa")),
        (("auto", "auto"), (CAPPED, LLAMA), "cuda", ("eager", "sdpa")),
        (("auto", "auto"), (CAPPED, LLAMA), None, (FLASH, FLASH)),
        (("auto", "auto"), (LLAMA, LINEAR), None, ("sdpa", "sdpa")),
        (("sdpa", "auto"), (LLAMA, QWEN), None, ("sdpa", "sdpa")),
        (("auto", "eager"), (LLAMA, QWEN), None, ("sdpa", "eager")),
        ((FLASH, "auto"), (LLAMA, QWEN), None, (FLASH, FLASH)),
    ],
)
def test_auto_takes(asked, models, lacks, taken, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: lacks != "cuda")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if lacks == "package" else name)
    settled = settle_attention(recipe(*asked, "fp32" if lacks == "short weights" else "bf16"), *models)
    assert (settled.student.attention, settled.teacher.attention) == taken
