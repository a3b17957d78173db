"""A small step that every gradient test and every worker shares: random models, fixed rollouts, several recipes."""

from __future__ import annotations

import math
import random
from functools import partial
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PhiConfig, PhiForCausalLM

from opd import schedules
from opd.batch import Rollout
from opd.config import Recipe
from opd.distributed import Ranks, Trainer, Update
from opd.lora import LoraSettings, adapters, attach
from opd.metrics import Clock
from opd.model_spec import ModelSettings
from opd.objectives import OBJECTIVES
from opd.recipe_text import parse_recipe
from opd.selection import SELECTORS
from opd.step import Run, StepResult, step
from opd.student import Student
from opd.teacher.local import LocalTeacher
from opd.vocab_ranks import RankShard
from tests import reference

VOCABULARY = 37
STOP = (2, 5)

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
    "stop_class": [{"select": {"type": "soft_or", "keep": 0.5}, "objective": {"type": "reverse_kl"}}],
    "sampled": [{"objective": {"type": "sampled_reverse_kl"}}],
    "sampled_clipped": [
        {
            "select": {"type": "dial"},
            "objective": {"type": "sampled_reverse_kl", "baseline": "full_kl", "clip": 0.2},
        }
    ],
    "plackett_luce": [
        {"select": {"type": "opener", "entropy_share": 0.3}, "objective": {"type": "plackett_luce", "k": 5}}
    ],
    "tsdkd": [
        {
            "select": {"type": "opener", "entropy_share": 0.3},
            "objective": {"type": "plackett_luce", "k": 10},
            "weight": 0.1,
        },
        {"select": {"type": "soft_gate", "tau": 0.7}, "objective": {"type": "jsd", "beta": 0.9}},
        {
            "select": {"type": "entropy", "choose": "top", "keep": 0.3},
            "objective": {"type": "entropy", "mode": "minimise"},
        },
    ],
    "uskd": [{"select": {"type": "q3", "keep": 0.6}, "objective": {"type": "uskd", "mu": 0.3}}],
    "nkd": [
        {"objective": {"type": "nkd_target", "target": "teacher"}},
        {"objective": {"type": "nkd_non_target", "target": "sampled", "temperature": 2.0}},
    ],
    "teacher_top": [
        {
            "select": {"type": "divergence", "keep": 0.5},
            "objective": {"type": "reverse_kl", "teacher_top": 6},
        },
        {
            "select": {"type": "first_n", "tokens": 4},
            "objective": {"type": "skew_kl", "teacher_top": 4, "direction": "forward"},
        },
    ],
    "d3s": [{"select": {"type": "d3s", "keep": 0.4}, "objective": {"type": "reverse_kl"}}],
    "d3s_by_ratio": [
        {"select": {"type": "d3s", "keep": 0.4, "token_score": "soft_or"}, "objective": {"type": "reverse_kl"}}
    ],
    "tgdpo": [{"objective": {"type": "tgdpo", "beta": 0.4}}],
    "rewarded": [
        {"objective": {"type": "task_reward"}},
        {"select": {"type": "surprisal"}, "objective": {"type": "constant_penalty"}},
    ],
}
"""The terms of every case: each selector and each objective stands in one of them, by itself if nowhere else."""
for name in sorted(SELECTORS.keys() - {t.get("select", {"type": "all"})["type"] for ts in LOSSES.values() for t in ts}):
    LOSSES[f"select_{name}"] = [{"select": {"type": name}, "objective": {"type": "reverse_kl"}}]
for name in sorted(OBJECTIVES.keys() - {t["objective"]["type"] for ts in LOSSES.values() for t in ts}):
    LOSSES[f"pay_{name}"] = [{"objective": {"type": name}}]

PAIRS = {"prompts": {"path": "none.jsonl", "max_tokens": 12, "answer": "answer"}}
PAIRS |= {"rollout": {"max_new_tokens": 20, "type": "transformers", "samples_per_prompt": 2}}
WIDEST = {"rollout_selection": {"type": "max_variance", "keep_rollouts": 6, "per": "step"}}
BESIDE = {
    "stop_class": {"stop_class": True},
    "sampled": {"stop_class": True},
    "tsdkd": {"stop_class": True},
    "d3s": PAIRS | WIDEST | {"advantage": "reward"},
    "d3s_by_ratio": PAIRS | WIDEST | {"advantage": "log_ratio"},
    "tgdpo": PAIRS,
    "rewarded": PAIRS | {"advantage": "reward"},
}
"""What a case needs in its recipe beside its terms."""

REFERENCES = {
    "all": reference.reverse_kl_loss,
    "soft_or_batch": partial(reference.reverse_kl_loss, soft_or_share=0.5),
    "stop_class": partial(reference.reverse_kl_loss, soft_or_share=0.5, stop=STOP),
    "sampled": partial(reference.sampled_reverse_kl_loss, stop=STOP),
    "tsdkd": partial(reference.tsdkd_loss, opening=0.3, k=10, tau=0.7, beta=0.9, unsure=0.3, stop=STOP),
    "d3s": partial(reference.d3s_loss, rollouts_kept=6, share=0.4),
    "tgdpo": partial(reference.tgdpo_loss, alpha=0.5, beta=0.4),
}
"""Cases that are computed a second time, from whole logits."""

DRAWN = ("three_terms",)
"""Cases that draw tokens, keyed by the place of the rollout in the step: there the order of rollouts matters."""


def recipe(name: str = "all", **more: Any) -> Recipe:
    """A recipe with one of LOSSES; `more` are its other keys."""
    data = {
        "student": {"model": "student"},
        "teacher": {"type": "local", "model": "teacher"},
        "prompts": {"path": "none.jsonl", "max_tokens": 12},
        "rollout": {"max_new_tokens": 20, "type": "transformers"},
        "loss": LOSSES[name],
        "stop_class": False,
        "token_budget": 4096,
        "precision": "fp32",
        "metrics": {"full_every": 1},
    }
    return parse_recipe(data | BESIDE.get(name, {}) | more)


STREAMED = [name for name in LOSSES if all(term.objective.streams for term in recipe(name).loss)]
"""Cases that heads cut by vocabulary can pay."""


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


def ending(end: int, *, never: int, seed: int, hidden: int) -> PhiForCausalLM:
    """A random model that ends a turn with one token, about one time in six, and gives another one about 1e-11."""
    torch.manual_seed(seed)
    config = PhiConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.25,
        eos_token_id=end,
    )
    made = PhiForCausalLM(config)  # its head has a bias
    with torch.no_grad():
        made.lm_head.weight[[end, never]] = 0
        made.lm_head.bias[[end, never]] = torch.tensor([2.5, -21.5])
    return made


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

    def update(self, lr: float, *, idle: bool = False) -> Update:
        return Update(skipped=False, grad_norm=0.0)


def adapted(targets: list[str], *, tied: bool = False, dtype: torch.dtype = torch.float64) -> Student:
    """The random student with adapters of rank 2 that are not at their start: what B A adds is as large as W."""
    settings = LoraSettings(rank=2, alpha=3, targets=targets)
    made = model(1, hidden=16, tied=tied, dtype=dtype)
    attach(made, settings, ModelSettings(model="student"), seed=0)
    torch.manual_seed(5)
    with torch.no_grad():
        for adapter in adapters(made).values():
            adapter.lora_B.copy_(torch.randn(adapter.lora_B.shape, dtype=torch.float64) / 2)
    return Student(made, tokens=VOCABULARY)


def run(
    chosen: Recipe,
    *,
    trainer=None,
    tied: bool = False,
    dtype: torch.dtype = torch.float64,
    ranks=None,
    teacher: LocalTeacher | None = None,
) -> Run:
    """Everything a step needs, with the plain trainer and the whole teacher unless others are given."""
    if trainer is None:
        trainer = PlainTrainer(student(chosen, tied=tied, dtype=dtype))
    reference = LocalTeacher(origin(tied=tied, dtype=dtype))
    teacher = teacher or frozen(dtype)
    return Run(chosen, trainer, teacher, ranks or Ranks(), "rows", graded, Clock(), stop=STOP, reference=reference)


def frozen(dtype: torch.dtype = torch.float64, shard: RankShard | None = None) -> LocalTeacher:
    """The teacher, or a rank's part of it."""
    return LocalTeacher(model(2, hidden=24, dtype=dtype).requires_grad_(False), shard)


def origin(*, tied: bool = False, dtype: torch.dtype = torch.float64) -> LlamaForCausalLM:
    """What the reference holds: a model that the student has moved away from."""
    made = model(1, hidden=16, tied=tied, dtype=dtype).requires_grad_(False)
    made.lm_head.weight.mul_(0.9)
    return made


def independent(
    name: str, *, tied: bool = False, weights: dict[str, torch.Tensor] | None = None
) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradient of one of REFERENCES' cases in float64, by tests/reference.py; at other weights if given."""
    plain, teacher = model(1, hidden=16, tied=tied), model(2, hidden=24)
    if weights is not None:
        plain.load_state_dict(weights, strict=not tied)
    more = {"origin": origin(tied=tied)} if name == "tgdpo" else {}
    more |= {"rewards": [graded(r) for r in rollouts()]} if name in ("d3s", "tgdpo") else {}
    loss = REFERENCES[name](plain, teacher, rollouts(), **more)
    loss.backward()
    return loss.item(), {key: p.grad for key, p in plain.named_parameters()}


def graded(rollout: Rollout) -> float:
    """A reward that no two rollouts of different length share, so that nothing ties."""
    return math.sin(rollout.length)


def taken(run: Run, rollouts: list[Rollout], index: int = 0) -> StepResult:
    """One step of the run, at the values of that step."""
    return step(run, schedules.at(run.recipe, index), rollouts, index)


def student(chosen: Recipe, *, tied: bool = False, dtype: torch.dtype = torch.float64) -> Student:
    """The random student's module."""
    made = model(1, hidden=16, tied=tied, dtype=dtype)
    return Student(made, tokens=VOCABULARY, layer_share=chosen.layer_share)


def gradients(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Each parameter's gradient under its checkpoint name."""
    return {name: p.grad.clone() for name, p in module.model.named_parameters()}


def relative_error(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """Largest ‖got − expected‖ / ‖expected‖ over parameters."""
    assert got.keys() == expected.keys()
    return max(float((got[k] - v).norm() / v.norm().clamp_min(1e-12)) for k, v in expected.items())


def same_weights(got: list[torch.Tensor], expected: list[torch.Tensor], *, within: float) -> bool:
    """Whether each term weighs its tokens alike: the same selection, and gates within rounding."""
    pairs = zip(got, expected, strict=True)
    return all(a.shape == b.shape and bool(((a.double() - b.double()).abs() <= within).all()) for a, b in pairs)
