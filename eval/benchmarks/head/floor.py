"""The floor: only the matrix products that must be done, in the form that this machine does fastest.

For n rows that pay: both models' logits, the gradient of the hidden states, and that of the head unless it is frozen,
3Fs + Ft over those rows. A statistics pass is both models' logits of all rows, Fs + Ft. Each product runs by torch.mm
into memory that is there, whole or in tiles of FORMS; a product's form is the fastest of one calibration, and rounds
time that one alone: a minimum taken in each round would be biased by the noise.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from eval.benchmarks.head.cases import Inputs
from eval.benchmarks.head.clock import seconds_of

WHOLE = 1 << 40
FORMS = ((WHOLE, WHOLE), (WHOLE, 4096), (256, WHOLE), (256, 4096))
"""Rows and columns of a tile of logits."""
FLOORS = {"floor": None, "floor-fp32": torch.float32}
"""By name, with the dtype of the products: None is the case's own."""

Form = tuple[int, int]
CHOSEN: dict[tuple, Form] = {}
"""The form of each product so far, by kind, n, V, H and dtype."""


@dataclass(frozen=True)
class Product:
    """One product of the floor over n rows; `kind` is what it makes: logits, hidden (gradient) or head (gradient)."""

    kind: str
    hidden_nH: Tensor
    weight_VH: Tensor

    def seconds(self, form: Form) -> float:
        """Wall time in this form; memory is made and touched before."""
        rows, columns = min(form[0], len(self.hidden_nH)), min(form[1], len(self.weight_VH))
        tile = self.hidden_nH.new_zeros(rows * columns)
        run = {"logits": self._logits, "hidden": self._hidden_gradient, "head": self._head_gradient}[self.kind]
        out = {"logits": self.hidden_nH[:0], "hidden": self.hidden_nH, "head": self.weight_VH}[self.kind]
        out = torch.zeros_like(out)
        return seconds_of(lambda: run(tile, out, rows, columns), self.hidden_nH.device)

    @property
    def form(self) -> Form:
        """The best of FORMS, each run once after a cold one; remembered for the process."""
        key = (self.kind, len(self.hidden_nH), *self.weight_VH.shape, str(self.weight_VH.dtype))
        if key not in CHOSEN:
            self.seconds(FORMS[0])
            CHOSEN[key] = min(FORMS, key=self.seconds)
        return CHOSEN[key]

    def _logits(self, tile: Tensor, _: Tensor, rows: int, columns: int) -> None:
        for hidden_rH in self.hidden_nH.split(rows):
            for weight_cH in self.weight_VH.split(columns):
                torch.mm(hidden_rH, weight_cH.T, out=_corner(tile, len(hidden_rH), len(weight_cH)))

    def _hidden_gradient(self, tile: Tensor, out_nH: Tensor, rows: int, columns: int) -> None:
        for out_rH in out_nH.split(rows):
            for i, weight_cH in enumerate(self.weight_VH.split(columns)):
                out_rH.addmm_(_corner(tile, len(out_rH), len(weight_cH)), weight_cH, beta=int(i > 0))

    def _head_gradient(self, tile: Tensor, out_VH: Tensor, rows: int, columns: int) -> None:
        for out_cH in out_VH.split(columns):
            for i, hidden_rH in enumerate(self.hidden_nH.split(rows)):
                out_cH.addmm_(_corner(tile, len(hidden_rH), len(out_cH)).T, hidden_rH, beta=int(i > 0))


def _corner(tile: Tensor, rows: int, columns: int) -> Tensor:
    return tile[: rows * columns].view(rows, columns)


def loss_products(inputs: Inputs, kept_T: Tensor, *, frozen: bool) -> dict[str, Product]:
    """What a loss over the rows kept can't do without."""
    hidden_nH, weight_VH = inputs.hidden_TH[kept_T], inputs.weight_VH
    products = {
        "student": Product("logits", hidden_nH, weight_VH),
        "teacher": Product("logits", inputs.teacher_hidden_TH[kept_T], inputs.teacher_weight_VH),
        "hidden": Product("hidden", hidden_nH, weight_VH),
    }
    return products if frozen else products | {"head": Product("head", hidden_nH, weight_VH)}


def statistics_products(inputs: Inputs) -> dict[str, Product]:
    """What statistics of every row can't do without."""
    every_T = torch.ones(len(inputs.hidden_TH), dtype=torch.bool, device=inputs.hidden_TH.device)
    products = loss_products(inputs, every_T, frozen=True)
    return {name: products[name] for name in ("student", "teacher")}


@dataclass(frozen=True)
class Floor:
    """The floor of one case in one dtype."""

    inputs: Inputs
    frozen: bool

    @classmethod
    def of(cls, inputs: Inputs, dtype: torch.dtype | None, *, frozen: bool) -> Floor:
        """For these inputs, or a copy of them in another dtype."""
        return cls(inputs.to(dtype or inputs.hidden_TH.dtype), frozen)

    def loss(self, kept_T: Tensor) -> dict[str, float]:
        """Seconds of each product of a loss over the rows kept."""
        return _timed(loss_products(self.inputs, kept_T, frozen=self.frozen))

    def statistics(self) -> dict[str, float]:
        """Seconds of each product of a statistics pass."""
        return _timed(statistics_products(self.inputs))


def _timed(products: dict[str, Product]) -> dict[str, float]:
    return {name: product.seconds(product.form) for name, product in products.items()}
