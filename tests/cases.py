"""A small step that every gradient test and every worker shares: random models, fixed rollouts, several recipes."""

from __future__ import annotations

import random

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from opd import schedules
from opd.batch import Rollout
from opd.config import Recipe
from opd.distributed import Ranks, Trainer, Update
from opd.metrics import Clock
from opd.recipe_text import parse_recipe
from opd.step import Outcome, Run, step
from opd.student import Student
from opd.teacher.local import LocalTeacher
from opd.train import layer_share

VOCABULARY = 37

LOSSES = {
    "all": [{"objective": {"type": "reverse_kl"}}],
    "soft_or_batch": [{"select": {"type": "soft_or", "keep": 0.5}, "objective": {"type": "reverse_kl"}}],
    "soft_or_rollout": [
        {"select": {"type": "soft_or", "keep": 0.3, "scope": "rollout"}, "objective": {"type": "reverse_kl"}}
    ],
    "three_terms": [
        {"select": {"type": "entropy", "keep": 0.4}, "objective": {"type": "forward_kl"}, "weight": 0.5},
        {"select": {"type": "random", "keep": 0.2}, "objective": {"type": "jsd", "beta": 0.3}, "weight": 2.0},
        {"objective": {"type": "reverse_kl"}, "weight": 0.1},
    ],
}


def recipe(loss: str = "all", **more) -> Recipe:
    """A recipe with one of LOSSES; `more` are its other keys."""
    data = {
        "student": {"model": "student"},
        "teacher": {"type": "local", "model": "teacher"},
        "prompts": {"path": "none.jsonl", "max_tokens": 12},
        "rollout": {"max_new_tokens": 20, "type": "transformers"},
        "loss": LOSSES[loss],
        "stop_class": False,
        "token_budget": 4096,
        "precision": "fp64",
        "metrics": {"full_every": 1},
    }
    return parse_recipe(data | more)


def model(seed: int, *, hidden: int, tied: bool = False, dtype: torch.dtype = torch.float64) -> LlamaForCausalLM:
    """A random Llama whose distributions are far from uniform."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=hidden // 2,
        tie_word_embeddings=tied,
        attn_implementation="sdpa",
    )
    made = LlamaForCausalLM(config).double()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 0.35)
    return made.to(dtype)


def rollouts(seed: int = 0) -> list[Rollout]:
    """Eleven rollouts of very different lengths: one is empty, one a single token, one has tool output inside."""
    draw = random.Random(seed)
    made = []
    for group, length in enumerate([7, 1, 18, 0, 5, 12, 3, 9, 20, 2, 6]):
        prompt = [draw.randrange(VOCABULARY) for _ in range(draw.randint(2, 12))]
        completion = [draw.randrange(VOCABULARY) for _ in range(length)]
        trained = [True] * length
        if length == 12:
            trained[4:7] = [False] * 3
        count = sum(trained)
        logprobs = [-draw.random() for _ in range(count)]
        ids, mask = prompt + completion, [False] * len(prompt) + trained
        made.append(Rollout(ids, mask, logprobs, [0] * count, "stop", group // 2, {"answer": "1"}))
    return made


class PlainTrainer(Trainer):
    """The student without DeepSpeed: gradients stay on its parameters, and no step is taken."""

    def __init__(self, student: Student) -> None:
        self.student = student
        self.backwards = 0

    def __call__(self, *args, **kwargs):
        return self.student(*args, **kwargs)

    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        self.backwards += 1
        loss.backward()

    def update(self, lr: float) -> Update:
        return Update(skipped=False, grad_norm=0.0)


def run(chosen: Recipe, *, trainer=None, tied: bool = False, dtype: torch.dtype = torch.float64, ranks=None) -> Run:
    """Everything a step needs, with the plain trainer unless another is given."""
    if trainer is None:
        trainer = PlainTrainer(student(chosen, tied=tied, dtype=dtype))
    teacher = LocalTeacher(model(2, hidden=24, dtype=dtype).requires_grad_(False))
    reference = LocalTeacher(model(1, hidden=16, tied=tied, dtype=dtype).requires_grad_(False))
    return Run(chosen, trainer, teacher, ranks or Ranks(), "rows", graded, Clock(), stop=(2, 5), reference=reference)


def graded(rollout: Rollout) -> float:
    """A reward that differs within most groups."""
    return float(rollout.length % 4 == 3)


def taken(run: Run, rollouts: list[Rollout], index: int = 0) -> Outcome:
    """One step of the run, at the values of that step."""
    return step(run, schedules.at(run.recipe, index), rollouts, index)


def student(chosen: Recipe, *, tied: bool = False, dtype: torch.dtype = torch.float64) -> Student:
    """The random student's module."""
    made = model(1, hidden=16, tied=tied, dtype=dtype)
    return Student(made, tokens=VOCABULARY, layer_share=layer_share(chosen))


def gradients(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Each parameter's gradient under its checkpoint name."""
    return {name: p.grad.clone() for name, p in module.model.named_parameters()}


def relative_error(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """Largest ‖got − expected‖ / ‖expected‖ over parameters."""
    assert got.keys() == expected.keys()
    return max(float((got[k] - v).norm() / v.norm().clamp_min(1e-12)) for k, v in expected.items())
