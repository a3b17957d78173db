"""What trains, and what a rank must hold for it: from the models' configurations, before a weight is loaded."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from opd.batch import REFERENCE
from opd.config import Recipe
from opd.distributed import offloads_optimizer
from opd.head.cost import loss_cost, rank_bytes
from opd.lora import targeted
from opd.models import DTYPES, empty_model, freeze_beside, has_experts, load_config, of_layers, text_config
from opd.rollout.start import engine_type
from opd.run import machine
from opd.teacher.placement import head_shape, place_head

GIB = 1 << 30


@dataclass(frozen=True)
class Sizes:
    """Weights: all of the student's, those of it that train, the teacher's; adapters: layers that have one, 0: none."""

    student: int
    trained: int
    teacher: int
    adapters: int

    @property
    def base(self) -> int:
        """The student's without adapters."""
        return self.student - (self.trained if self.adapters else 0)

    @property
    def words(self) -> str:
        """What trains, for the user."""
        beside = f", in adapters beside {self.adapters} of its layers" if self.adapters else ""
        return f"trains {self.trained:,} of the student's {self.student:,} weights{beside}"


def sizes_of(recipe: Recipe) -> Sizes:
    """Counted on models without memory; a tied head counts once."""
    student, teacher = (empty_model(load_config(m.model, m.revision)) for m in (recipe.student, recipe.teacher))
    every, teachers = (sum(p.numel() for p in model.parameters()) for model in (student, teacher))
    if (lora := recipe.student.lora) is None:
        freeze_beside(student)
        trained = sum(p.numel() for p in student.parameters() if p.requires_grad)
        return Sizes(every, trained, teachers, adapters=0)
    layers = [student.get_submodule(name) for name in targeted(student, lora.targets)]
    added = sum(lora.rank * sum(layer.weight.shape) for layer in layers)
    return Sizes(every + added, added, teachers, adapters=len(layers))


def bytes_of(recipe: Recipe, sizes: Sizes, *, ranks: int, zero_stage: int) -> dict[str, int]:
    """Bytes on each of R ranks, by what holds them; activations, which grow with token_budget, are not among them.

    With P weights of which T train, in b bytes each: P b, T · 4 of gradient, T · 12 of fp32 masters and Adam's averages
    (8 where the weights are their own masters: fp32 outside ZeRO-1 and 2, which copy them). ZeRO-1 shares the last
    among the ranks, ZeRO-2 the gradient too, ZeRO-3 all. The teacher takes its b a weight, shared with
    `teacher.shard: zero3`; so does the student at start, where an objective needs it, whole. What DeepSpeed or
    `teacher.offload` keep in main memory counts too.
    """
    width = DTYPES[recipe.precision].itemsize
    weights, gradient, states = (ranks if zero_stage >= least else 1 for least in (3, 2, 1))
    own_master = recipe.precision == "fp32" and zero_stage not in (1, 2)
    held = {
        "student": sizes.student * width // weights,
        "its gradient": sizes.trained * 4 // gradient,
        "optimizer": sizes.trained * (8 if own_master else 12) // states,
        "teacher": sizes.teacher * width // (ranks if recipe.teacher.shard == "zero3" else 1),
    }
    held |= _head(recipe, held["teacher"], ranks)
    if REFERENCE in recipe.needs:
        held["student at start"] = sizes.base * width
    return held | _engine(recipe, sizes.base * width)


def _head(recipe: Recipe, teacher: int, ranks: int) -> dict[str, int]:
    """The loss over a rank's largest micro-batch with its backward, by `head/cost.py`; the teacher's too if it changes.

    A loss over whole heads counts the costlier of its ways: what it keeps between sweeps, or tiles of whole rows.
    """
    configs = [load_config(model.model, model.revision) for model in (recipe.student, recipe.teacher)]
    shape, parts = head_shape(recipe, *configs, ranks), place_head(recipe, *configs, ranks).ranks
    if parts == 1:
        mode = "kept" if all(term.objective.streams for term in recipe.loss) else "tiles"
        return {"the loss head": round(loss_cost(shape, mode).peak_extra_bytes)}
    whole = shape.vocabulary * shape.teacher_hidden * shape.itemsize
    elsewhere = whole - whole // parts if recipe.teacher.shard == "none" else 0
    return {"teacher": teacher - elsewhere, "the loss head": rank_bytes(shape, parts) - whole // parts}


def _engine(recipe: Recipe, weights: int) -> dict[str, int]:
    """What samples beside the trainer: nothing, nothing while vLLM sleeps on a GPU, its share of a GPU, or a copy."""
    rollout = recipe.rollout
    is_vllm = rollout.type != "recorded" and engine_type(rollout) == "vllm"
    if not recipe.samples:
        return {}
    if _is_on_gpu(recipe):
        return {} if rollout.sleep else {"engine": _gpu_share(recipe)}
    return {"engine": weights // rollout.tensor_parallel} | (
        {"its cache": rollout.kv_cache_mib << 20} if is_vllm else {}
    )


def memory_lines(recipe: Recipe, *, ranks: int, zero_stage: int) -> list[str]:
    """What trains, and what a rank holds, a line each for the user."""
    sizes = sizes_of(recipe)
    held = bytes_of(recipe, sizes, ranks=ranks, zero_stage=zero_stage)
    parts = ", ".join(f"{name} {size / GIB:.2f}" for name, size in held.items())
    width, active = DTYPES[recipe.precision].itemsize, activation_bytes(recipe, ranks=ranks)
    whole = sum(held.values()) / GIB
    holds = f"a rank holds about {whole:.1f} GiB ({parts}), and at least {active / GIB:.1f} of activations"
    if zero_stage == 3 and ranks > 1:
        holds += f"; while it starts, the student whole, {sizes.student * width / GIB:.2f}"
    sleeps = _is_on_gpu(recipe) and recipe.rollout.sleep
    if sleeps:
        holds += f"; while it samples, vLLM takes {_gpu_share(recipe) / GIB:.1f} GiB beside it"
    if sleeps and recipe.rollout.sleep_level == 1:
        asleep = sizes.base * width / recipe.rollout.tensor_parallel
        holds += f"; asleep, {asleep / GIB:.1f} of each rank's main memory (rollout.sleep_level 2: none)"
    stored = sizes.trained * (12 + width) / 1e9
    disk = f"a checkpoint takes about {stored:.1f} GB, and checkpoints.keep + 1 lie there while one is written"
    return [sizes.words, holds, *_too_much(recipe, held, active), disk, f"on {machine()}"]


def activation_bytes(recipe: Recipe, *, ranks: int) -> int:
    """The least that the student's backward pass wants kept of a rank's largest micro-batch, T tokens; more is usual.

    Of each of L blocks, with H, I, and A and K widths of the attention's queries and keys: T (4 I + 2 H + 2 A + 2 K)
    numbers, or with checkpointing T H, none of them here with `offload`, and one block's at a time. An MLP without a
    gate keeps 2 I, one with adapters may keep I less, experts are left out; of blocks unlike each other the smallest
    counts.
    """
    longest = recipe.prompts.max_tokens + recipe.rollout.max_new_tokens
    most = min(recipe.token_budget, recipe.rollouts_per_data_rank(ranks) * longest)
    tokens = most // recipe.sequence_parallel_size
    config = load_config(recipe.student.model, recipe.student.revision)
    text = text_config(config)
    heads = min(of_layers(text, "num_attention_heads") or [0])  # none in a state-space model
    width = min(of_layers(text, "head_dim") or [text.hidden_size // max(1, heads)])
    inner = 0 if has_experts(config) else min(of_layers(text, "intermediate_size") or [0])
    keys = min(of_layers(text, "num_key_value_heads") or [heads])
    gated = any("gate_" in name for name, _ in empty_model(config).named_modules())
    inners = (4 if gated else 2) - (recipe.student.lora is not None)
    block = inners * inner + 2 * text.hidden_size + 2 * width * (heads + keys)
    kind, layers = recipe.student.gradient_checkpointing, text.num_hidden_layers
    numbers = layers * block if not kind else block + (0 if kind == "offload" else layers * text.hidden_size)
    return tokens * numbers * DTYPES[recipe.precision].itemsize


def _too_much(recipe: Recipe, held: dict[str, int], active: int) -> list[str]:
    """A warning where a GPU is too small for what is certain; gradient and head are gone while the engine samples."""
    if not torch.cuda.is_available():
        return []
    if offloads_optimizer():
        held = {name: size for name, size in held.items() if name not in ("its gradient", "optimizer")}
    card = torch.cuda.get_device_properties(0).total_memory
    needs = {"while it trains": sum(held.values()) + active}
    if _is_on_gpu(recipe) and recipe.rollout.sleep:
        gone = {"its gradient", "the loss head"} | ({"teacher"} if recipe.teacher.offload else set())
        resting = sum(size for name, size in held.items() if name not in gone)
        needs["while it samples"] = resting + _gpu_share(recipe)
    return [
        f"warning: {when} a rank needs {need / GIB:.1f} GiB, and this GPU has {card / GIB:.1f}; lower token_budget or "
        "rollout.gpu_memory_share, set student.gradient_checkpointing, or share more (ZeRO-3, teacher.shard, lora)"
        for when, need in needs.items()
        if need > card
    ]


def _is_on_gpu(recipe: Recipe) -> bool:
    """Whether vLLM samples on a GPU."""
    return torch.cuda.is_available() and recipe.rollout.type != "recorded" and engine_type(recipe.rollout) == "vllm"


def _gpu_share(recipe: Recipe) -> int:
    return int(recipe.rollout.gpu_memory_share * torch.cuda.get_device_properties(0).total_memory)
