"""Error of the gradient: ‖g − g64‖ / ‖g64‖ (Frobenius) against plain torch in float64 on the same numbers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from eval.benchmarks.head.cases import Case, Inputs, Shape
from eval.benchmarks.head.contenders import CONTENDERS, plain_torch

SAMPLE, SHARE = 128, 0.5
"""Rows, and the share of them that pays: with the largest V, four heads in float64 and the logits take about 6 GiB."""


def gradient_errors(case: Case, names: list[str]) -> dict[str, dict[str, float]]:
    """Each contender's error, of the hidden states' gradient and (unless frozen) of the head's."""
    inputs = case.inputs(min(SAMPLE, Shape.named(case.shape).rows))
    kept_T = inputs.kept(SHARE)
    truth = gradients(plain_torch, inputs.to(torch.float64).ready(frozen=case.frozen), kept_T)
    return {name: _errors(gradients(CONTENDERS[name].loss, inputs, kept_T), truth) for name in names}


def gradients(loss: Callable[[Inputs, Tensor], Tensor], inputs: Inputs, kept_T: Tensor) -> dict[str, Tensor]:
    """Of the loss, by name: hidden, and head unless frozen."""
    inputs.forget_gradients()
    loss(inputs, kept_T).backward()
    found = {"hidden": inputs.hidden_TH.grad, "head": inputs.weight_VH.grad}
    inputs.forget_gradients()
    return {name: gradient for name, gradient in found.items() if gradient is not None}


def relative_error(gradient: Tensor, truth: Tensor) -> float:
    """‖g − g64‖ / ‖g64‖."""
    return float((gradient.to(truth.dtype) - truth).norm() / truth.norm())


def _errors(found: dict[str, Tensor], truth: dict[str, Tensor]) -> dict[str, float]:
    return {name: relative_error(found[name], truth[name]) for name in truth}
