"""Cases: a shape, an objective, a dtype, a head that trains or not; and the tensors that every contender gets."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

BETAS = {"reverse_kl": 1.0, "forward_kl": 0.0, "jsd": 0.5}
"""Objectives by our name, with the β by which TRL and Liger know them: the teacher's weight in the mixture."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
LOGIT_STD = 4.0
"""Of both models: a few nats of entropy, as a model's unsure tokens have."""


@dataclass(frozen=True)
class Shape:
    """Rows T, the student's and the teacher's hidden width, vocabulary V."""

    rows: int
    hidden: int
    teacher_hidden: int
    vocabulary: int

    @classmethod
    def named(cls, name: str) -> Shape:
        """One of SHAPES, or numbers: `64x32x48x2000` is T 64, Hs 32, Ht 48, V 2,000. ValueError for anything else."""
        if name in SHAPES:
            return SHAPES[name]
        if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){3}", name):
            raise ValueError(f"there is no shape {name}; choose of {', '.join(SHAPES)}, or write TxHsxHtxV")
        return cls(*map(int, name.split("x")))


SHAPES = {"smollm2": Shape(2048, 576, 576, 49_152), "qwen2.5": Shape(1024, 896, 1536, 151_936)}


@dataclass(frozen=True)
class Case:
    """What is measured together, over all shares. shape: as `Shape.named` reads it; frozen: the head does not train."""

    shape: str
    objective: str = "reverse_kl"
    dtype: str = "fp32"
    frozen: bool = False
    device: str = "cpu"

    def __str__(self) -> str:
        return f"{self.shape} {self.dtype} {self.objective}{' frozen' if self.frozen else ''}"

    def inputs(self, rows: int | None = None) -> Inputs:
        """The tensors of the case, always the same; of so many rows alone where they are given."""
        shape = Shape.named(self.shape)
        shape = shape if rows is None else replace(shape, rows=rows)
        return _draw(shape, self.objective, torch.device(self.device)).to(DTYPES[self.dtype]).ready(frozen=self.frozen)


@dataclass(frozen=True)
class Inputs:
    """Hidden states of T rows and the head, student's and teacher's; the first two collect gradients once `ready`."""

    hidden_TH: Float[Tensor, "T Hs"]
    weight_VH: Float[Tensor, "V Hs"]
    teacher_hidden_TH: Float[Tensor, "T Ht"]
    teacher_weight_VH: Float[Tensor, "V Ht"]
    token_id_T: Int[Tensor, " T"]
    objective: str

    def to(self, dtype: torch.dtype) -> Inputs:
        """The same numbers in another dtype, without gradients."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("token_id_T", "objective")}
        return replace(self, **{name: tensor.detach().to(dtype) for name, tensor in tensors.items()})

    def ready(self, *, frozen: bool) -> Inputs:
        """The same, with gradients of hidden states and, unless frozen, of the head."""
        self.hidden_TH.requires_grad_()
        self.weight_VH.requires_grad_(not frozen)
        return self

    def forget_gradients(self) -> None:
        """As before the first backward."""
        self.hidden_TH.grad = self.weight_VH.grad = None

    def kept(self, share: float) -> Bool[Tensor, " T"]:
        """Rows that pay: a random share of all, at least one, the same in every call."""
        rows = len(self.hidden_TH)
        order = torch.randperm(rows, generator=torch.Generator().manual_seed(1))
        kept_T = torch.zeros(rows, dtype=torch.bool)
        kept_T[order[: max(1, round(share * rows))]] = True
        return kept_T.to(self.hidden_TH.device)


def _draw(shape: Shape, objective: str, device: torch.device) -> Inputs:
    """Random tensors; the teacher's first columns are the student's with noise, so that both mostly agree."""
    generator = torch.Generator(device).manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, device=device)

    hidden_TH, weight_VH = normal(shape.rows, shape.hidden), normal(shape.vocabulary, shape.hidden)
    states_TH = normal(shape.rows, shape.teacher_hidden)
    head_VH = normal(shape.vocabulary, shape.teacher_hidden)
    both = min(shape.hidden, shape.teacher_hidden)
    states_TH[:, :both] = 0.9 * hidden_TH[:, :both] + 0.43 * states_TH[:, :both]
    head_VH[:, :both] = weight_VH[:, :both]
    weight_VH *= LOGIT_STD / shape.hidden**0.5
    head_VH *= LOGIT_STD / shape.teacher_hidden**0.5
    token_id_T = torch.randint(shape.vocabulary, (shape.rows,), generator=generator, device=device)
    return Inputs(hidden_TH, weight_VH, states_TH, head_VH, token_id_T, objective)
