"""Low-rank adapters beside a frozen student's layers (LoRA, arXiv 2106.09685): which layers, and W + s · B A as one.

peft makes them and runs them; what reads a layer's weight itself (the loss head, the stream to the engine, an export)
takes `effective_weight`.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from pydantic import Field, PositiveInt, field_validator
from torch import Tensor, nn

from opd.errors import RecipeError
from opd.model_spec import ModelSettings
from opd.models import architecture
from opd.record import Record
from opd.seeds import seed_for

ADAPTER = "default"
"""peft's name for the only adapter that a layer has."""
ALL_LINEAR, HEAD = "all-linear", "lm_head"
"""Targets with a meaning of their own: every linear layer below the head; the head, whatever the model calls it."""
FULL_RATE, EXPONENTS, TIMES = 5e-5, (0.0775, 0.781), 10
"""Fits of the best learning rate (`usual_rates`): at width 2,000, over width for Qwen and Llama, of adapters."""


class LoraSettings(Record):
    """Low-rank adapters, which alone train: y = x (W + (alpha / rank) · B A)ᵀ with W frozen (arXiv 2106.09685).

    rank and alpha are TRL's defaults (`ModelConfig`). All layers rather than attention alone, and about ten times the
    learning rate of full training: QLoRA, arXiv 2305.14314, section 4; "LoRA Without Regret" (Schulman et al., 2025).
    """

    rank: PositiveInt = 16
    """Rows of A and columns of B."""
    alpha: PositiveInt = 32
    """B A is multiplied by alpha / rank."""
    targets: list[str] = Field(default_factory=lambda: [ALL_LINEAR], min_length=1)
    """Layers by name or its end (q_proj); all-linear is every linear layer below the head, lm_head the head."""
    merge: bool = False
    """Export the merged model too, as a plain folder `merged/` in the adapter's."""

    @field_validator("targets", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @property
    def adapts_head(self) -> bool:
        """Whether the head has an adapter."""
        return HEAD in self.targets


def usual_rates(hidden: int) -> tuple[float, float]:
    """The learning rates that full training takes at width H, least and most: 5e-5 · (2000 / H)^p; adapters ten times.

    p = 0.0775 for Qwen and 0.781 for Llama, fitted to supervised training ("LoRA Without Regret", Schulman et al.,
    Thinking Machines, 2025; the multiplier held for reinforcement learning too).

    >>> [f"{rate:.1e}" for rate in usual_rates(4096)]
    ['2.9e-05', '4.7e-05']
    """
    rates = [FULL_RATE * (2000 / hidden) ** exponent for exponent in EXPONENTS]
    return min(rates), max(rates)


def rate_warning(lr: float, hidden: int, *, adapted: bool) -> str | None:
    """A line for adapters with a rate below full training's, or full training with one nearer adapters' than its own.

    Nearer: above √10 times its own.
    """
    least, most = usual_rates(hidden)
    if adapted and lr < least:
        return (
            f"warning: optimizer.lr {lr:g} is low for adapters: at this width full training takes {least:.0e} to "
            f"{most:.0e}, and adapters about {TIMES} times that (LoRA Without Regret, 2025)"
        )
    if not adapted and lr > TIMES**0.5 * most:
        return (
            f"warning: optimizer.lr {lr:g} is adapters' rather than full training's, which at this width takes "
            f"{least:.0e} to {most:.0e} (LoRA Without Regret, 2025), and on-policy distillation less"
        )
    return None


@dataclass(frozen=True)
class LowRank:
    """scaling · B A beside a weight [out, in]: A [rank, in], B [out, rank]."""

    lora_A: nn.Parameter
    lora_B: nn.Parameter
    scaling: float

    def added_to(self, weight_OI: Float[Tensor, "O I"]) -> Float[Tensor, "O I"]:
        """W + scaling · B A, a tensor of its own; differentiable in A and B."""
        return torch.addmm(weight_OI, self.lora_B, self.lora_A, alpha=self.scaling)


def serving_warning(config: Any, *, adapted: bool) -> str | None:
    """A line where vLLM would serve the base model unchanged: it has another class for it, with other names."""
    named, ours = config.architectures or [], architecture(config).__name__
    if not adapted or not named or ours in named:
        return None
    return (
        f"warning: the adapter is one of {ours}, and vLLM serves {named[0]}, in which it finds none of its layers: "
        "serve model/merged/ (student.lora.merge: true)"
    )


def low_rank(layer: nn.Module) -> LowRank | None:
    """The adapter beside a layer, peft's or the loss head's own; None where there is none."""
    A, B = getattr(layer, "lora_A", None), getattr(layer, "lora_B", None)
    if A is None:
        return None
    if isinstance(A, nn.ModuleDict):
        return LowRank(A[ADAPTER].weight, B[ADAPTER].weight, layer.scaling[ADAPTER])
    return LowRank(A, B, layer.scaling)


def effective_weight(layer: nn.Module) -> Float[Tensor, "O I"]:
    """What a linear layer multiplies by: its weight, or with an adapter W + scaling · B A, a tensor of its own.

    Differentiable in A and B: ∂A = scaling · Bᵀ ∂W, ∂B = scaling · ∂W Aᵀ.
    """
    adapter = low_rank(layer)
    return layer.weight if adapter is None else adapter.added_to(layer.weight)


def adapters(model: nn.Module) -> dict[str, LowRank]:
    """The adapter of every layer that has one, by the layer's name."""
    found = {name: low_rank(module) for name, module in model.named_modules()}
    return {name: adapter for name, adapter in found.items() if adapter is not None}


def plain_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The model's own parameters under the names that they have without adapters, which are left out."""
    beside = {id(p) for adapter in adapters(model).values() for p in (adapter.lora_A, adapter.lora_B)}
    return {
        name.replace(".base_layer.", "."): parameter
        for name, parameter in model.named_parameters()
        if id(parameter) not in beside
    }


def plain_buffers(model: nn.Module) -> dict[str, Tensor]:
    """What a checkpoint holds beside parameters, and nothing trains: a scale of a layer, a bias of a router."""
    stored = model.state_dict().keys()
    return {name.replace(".base_layer.", "."): b for name, b in model.named_buffers() if name in stored}


def is_linear(layer: nn.Module) -> bool:
    """Whether a layer is x Wᵀ + b and nothing else: no adapter, not quantized."""
    return type(layer).forward is nn.Linear.forward


def is_adapted_linear(layer: nn.Module) -> bool:
    """Whether a layer is x (W + scaling · B A)ᵀ + b and nothing else: one plain adapter of peft's, without dropout."""
    if not type(layer).__module__.startswith("peft."):
        return False
    from peft.tuners.lora import Linear

    return (
        type(layer).forward is Linear.forward
        and is_linear(layer.base_layer)
        and list(layer.lora_A) == [ADAPTER]
        and is_linear(layer.lora_B[ADAPTER])
        and layer.lora_B[ADAPTER].bias is None
        and isinstance(layer.lora_dropout[ADAPTER], nn.Identity)
        and not layer.lora_variant
    )


def targeted(model: Any, targets: Iterable[str]) -> list[str]:
    """Full names of the layers that the targets name; the model may be on the meta device.

    RecipeError for a target that names none (with the nearest name), and for a head that is the embedding too.
    """
    below = set(map(id, model.get_decoder().modules()))
    layers = [name for name, module in model.named_modules() if id(module) in below and is_linear(module)]
    chosen: dict[str, None] = {}
    for target in targets:
        if target == HEAD:
            found = [_untied_head(model)]
        else:
            found = [n for n in layers if target == ALL_LINEAR or f".{n}".endswith(f".{target}")]
        if not found:
            raise RecipeError(f"student.lora.targets: {_no_layer(target, layers)}")
        chosen |= dict.fromkeys(found)
    return list(chosen)


def check_adapters(model: Any, settings: LoraSettings, base: ModelSettings) -> None:
    """RecipeError for targets that name no layer, a rank not below any layer's own, and adapters that would go astray.

    model: on the meta device, to throw away.
    """
    most = max(min(model.get_submodule(name).weight.shape) for name in targeted(model, settings.targets))
    if settings.rank >= most:
        raise RecipeError(
            f"student.lora.rank {settings.rank} is not low: no targeted layer has a rank above {most}; lower it, or "
            "leave student.lora out, which trains every weight"
        )
    attach(model, settings, base, seed=0)


def attach(model: Any, settings: LoraSettings, base: ModelSettings, *, seed: int) -> None:
    """Freeze the model and put fresh adapters beside its targeted layers: A random by `seed`, B 0, in its own dtype.

    RecipeError where peft puts them elsewhere: of a model whose experts transformers fuses, it takes the name of any
    `down_proj`, a dense layer's too, for theirs.
    """
    from peft import LoraConfig, inject_adapter_in_model

    names = targeted(model, settings.targets)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=base.model,
        revision=base.revision,
        r=settings.rank,
        lora_alpha=settings.alpha,
        target_modules=names,
    )
    with (
        torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", RuntimeWarning)  # of peft's renaming: what came of it is looked at below
        torch.manual_seed(seed_for("lora", seed))
        inject_adapter_in_model(config, model, ADAPTER)
    if without := sorted(set(names) - adapters(model).keys()):
        raise RecipeError(
            f"student.lora.targets: peft puts the adapters of {', '.join(without[:3])}{' …' * (len(without) > 3)} on "
            "this model's experts, which can't be adapted here; name its attention's layers alone"
        )


def _untied_head(model: Any) -> str:
    head = model.get_output_embeddings()
    if head.weight is model.get_input_embeddings().weight:
        raise RecipeError(
            f"student.lora.targets names {HEAD}, and this student's head is its embedding too (tied): the merged model "
            f"would have two different ones where its folder and the engine know one; leave {HEAD} out"
        )
    return next(name for name, module in model.named_modules() if module is head)


def _no_layer(target: str, layers: list[str]) -> str:
    ends = sorted({name.rsplit(".", 1)[-1] for name in layers})
    near = difflib.get_close_matches(target, [*ends, HEAD, ALL_LINEAR], n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"no linear layer of the student is called {target!r}; {hint}it has {', '.join(ends)}, and {HEAD}"
