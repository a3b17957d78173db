"""Token by token: against plain torch, and a model against itself."""

import pytest
import torch

from eval.fidelity.tokens import Text, token_fidelity
from opd.models import load_model, load_tokenizer, token_count
from opd.teacher.local import LocalTeacher

TEXTS = [Text([1, 5, 6], [1, 5, 6], [7, 8, 9, 4]), Text([1, 9], [1, 9, 9], [3] * 150)]


@pytest.fixture(scope="module")
def models(toy):
    return [load_model(str(toy / name), dtype=torch.float64).eval() for name in ("student", "teacher")]


@pytest.fixture(scope="module")
def tokens(toy) -> int:
    tokenizer = load_tokenizer(str(toy / "student"))
    return token_count(tokenizer, len(tokenizer))


def plain(model, prompt: list[int], completion: list[int]) -> torch.Tensor:
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *completion]])).logits[0]
    return logits[len(prompt) - 1 : -1].log_softmax(-1)


def test_equals_plain_torch(models, tokens, monkeypatch):
    monkeypatch.setattr("eval.fidelity.tokens.ROWS", 64)
    teachers = [LocalTeacher(model) for model in models]
    texts = [TEXTS[0], Text(*[TEXTS[1].student_prompt, TEXTS[1].teacher_prompt, list(range(3, 17)) * 8])]
    found = token_fidelity(*teachers, texts, tokens=tokens)
    ours, theirs = (
        torch.cat([plain(model, getattr(text, f"{who}_prompt"), text.completion) for text in texts])
        for who, model in zip(("student", "teacher"), models, strict=True)
    )
    assert found["top1"]["score"] == pytest.approx(float((ours.argmax(-1) == theirs.argmax(-1)).double().mean()))
    kl = torch.nn.functional.kl_div
    reverse, forward = (
        float(kl(b, a, log_target=True, reduction="none").sum(-1).mean()) for a, b in ((ours, theirs), (theirs, ours))
    )
    assert found["reverse_kl"]["score"] == pytest.approx(reverse, rel=1e-9)
    assert found["forward_kl"]["score"] == pytest.approx(forward, rel=1e-9)
    assert reverse != pytest.approx(forward) and found["top1"]["n"] == 2 and found["top1"]["stderr"] > 0


def test_a_model_is_faithful_to_itself(models, tokens):
    found = token_fidelity(LocalTeacher(models[0]), LocalTeacher(models[0]), TEXTS[:1], tokens=tokens)
    assert found["top1"]["score"] == 1.0 and found["reverse_kl"]["score"] == found["forward_kl"]["score"] == 0.0
