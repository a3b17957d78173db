"""One of several gloo ranks that share sequences, all or two by two: a step's loss and gradient, saved for the test.

The ranks' gradients are added up here; with `tests/workers/ranks.py` DeepSpeed does it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from opd.batch import Prompt, Rollout
from opd.distributed import Ranks
from opd.errors import ModelError
from opd.packing import lay_out, piece_of
from opd.reading import backbone, trained_states
from opd.student import Student
from opd.teacher.check import share_checked
from opd.teacher.local import LocalTeacher
from opd.ulysses import share_attention
from opd.vocab_ranks import RankShard
from tests import cases
from tests.test_architectures import FAMILIES, made

LONG = 2048
SHAPE = {"vocab_size": cases.VOCABULARY, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


def long_rollouts() -> list[Rollout]:
    """One of 2,048 tokens and a short one."""
    draw, made = random.Random(0), []
    for group, (prompt, length) in enumerate([(30, LONG - 30), (5, 94)]):
        ids = [draw.randrange(cases.VOCABULARY) for _ in range(prompt + length)]
        trained = [False] * prompt + [True] * length
        made.append(Rollout(ids, trained, [-1.0] * length, [0] * length, "stop", group, {"answer": "1"}))
    return made


def random_weights(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    """In float64, with distributions far from uniform."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.double().parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 0.3)
    return model


def long_models() -> tuple[Student, LocalTeacher]:
    """A Llama that learns from a Qwen2, whose heads and biases are others; both by sdpa."""
    context = {"max_position_embeddings": LONG, "attn_implementation": "sdpa"}
    llama = LlamaConfig(**SHAPE, **context, hidden_size=16, num_key_value_heads=2)
    qwen2 = Qwen2Config(**SHAPE, **context, hidden_size=24, num_key_value_heads=4)
    student = Student(random_weights(LlamaForCausalLM(llama), 1), tokens=cases.VOCABULARY)
    return student, LocalTeacher(random_weights(Qwen2ForCausalLM(qwen2), 2).requires_grad_(False))


def adapted_models() -> tuple[Student, LocalTeacher]:
    """Adapters on every layer and the head."""
    return cases.adapted(["all-linear", "lm_head"]), cases.frozen()


def small_models() -> tuple[Student, LocalTeacher]:
    """The models of `tests/cases.py`, with one key-value head."""
    return cases.student(cases.recipe()), cases.frozen()


def checkpointed_models() -> tuple[Student, LocalTeacher]:
    """The small ones; blocks are run again in the backward pass, and with them the exchange of tokens."""
    student, teacher = small_models()
    student.model.gradient_checkpointing_enable({"use_reentrant": False})
    return student, teacher


def parted_models() -> tuple[Student, LocalTeacher]:
    """The same, with a part of the teacher's head on each of several ranks."""
    shard = RankShard.of_rank(cases.VOCABULARY) if dist.is_initialized() else None
    return cases.student(cases.recipe()), cases.frozen(shard=shard)


Work = tuple[int, str, str, int]
"""Ranks that share sequences, models, case, token budget."""
MAKERS: dict[str, Callable[[], tuple[Student, LocalTeacher]]] = {
    "small": small_models,
    "adapted": adapted_models,
    "checkpointed": checkpointed_models,
    "by_vocabulary": parted_models,
    "long": long_models,
}


def taken(models: str, name: str, ranks: Ranks, budget: int) -> dict[str, Any]:
    """Loss, this rank's gradient and every term's weights of a step on those models."""
    student, teacher = MAKERS[models]()
    chosen = cases.recipe(name, token_budget=budget)
    student.layer_share = chosen.layer_share
    run = cases.run(chosen, trainer=cases.PlainTrainer(student), teacher=teacher, ranks=ranks)
    if ranks.pieces > 1:
        for model in (student.model, teacher.model, run.reference.model):
            share_attention(model, ranks.sequence_group)
    outcome = cases.taken(run, long_rollouts() if models == "long" else cases.rollouts())
    grads = {n: p.grad for n, p in student.model.named_parameters() if p.requires_grad}
    return {"loss": outcome.metrics["loss"], "grads": grads, "weights": outcome.weights}


def kept_bytes(ranks: Ranks) -> int:
    """What the long student's backbone keeps for the backward pass of the long rollout, its weights aside."""
    student, _ = long_models()
    if ranks.pieces > 1:
        share_attention(student.model, ranks.sequence_group)
    weights, kept = {p.untyped_storage().data_ptr() for p in student.parameters()}, {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    batch = piece_of(lay_out(long_rollouts(), [0], layout="rows"), ranks.piece, ranks.pieces)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        states = trained_states(backbone(student.model), batch)
    del states  # what is kept lives as long as these do, and no storage's place is taken twice
    return sum(size for place, size in kept.items() if place not in weights)


def rolling() -> PreTrainedModel:
    """A model whose last layer adds what the token before it got."""
    model = cases.model(1, hidden=16)
    model.model.layers[-1].register_forward_hook(lambda module, inputs, out: out + out.roll(1, 1))
    return model


def complaint(ranks: Ranks, model: PreTrainedModel) -> str | None:
    """What the check at the start says of a model."""
    prompts = [Prompt(i, list(range(3, 16 - i))) for i in range(2)]
    try:
        return share_checked(model, prompts, "rows", ranks, "student")
    except ModelError as error:
        return str(error)


def rank(index: int, folder: str, count: int, work: list[Work]) -> None:
    """Rank `index` of `count`; rank 0 leaves what it found of each piece of work, and what holds where all share."""
    import deepspeed

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=index, world_size=count)
    deepspeed.comm.init_distributed("gloo", auto_mpi_discovery=False, verbose=False)
    ranks = {size: Ranks(sequence_parallel_size=size) for size in (2, count)}
    found: dict[Any, Any] = {}
    for size, models, name, budget in work:
        found[size, models, name, budget] = one = taken(models, name, ranks[size], budget)
        for grad in one["grads"].values():
            dist.all_reduce(grad)
    found |= {"kept_bytes": kept_bytes(ranks[count])}
    if count == 2:
        models = {"rolling": rolling()} | {family: made(family, 1) for family in FAMILIES if family != "gemma2"}
        found["complaints"] = {name: complaint(ranks[2], model) for name, model in models.items()}
    if index == 0:
        torch.save(found, Path(folder, "found.pt"))
    dist.barrier()
