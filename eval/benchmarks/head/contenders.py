"""Who takes part. A loss is the mean divergence over the rows kept; its backward gives hidden states and head theirs.

To add a contender: write its loss (inputs, rows kept) → scalar, and its line in CONTENDERS.
"""

from __future__ import annotations

import importlib
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from eval.benchmarks.head.cases import BETAS, Inputs
from opd.errors import reason_of
from opd.head.cost import tile_bytes_of
from opd.head.loss import head_loss
from opd.head.pay import DensePay
from opd.head.settings import HeadSettings
from opd.head.statistics import row_statistics, with_normalisers
from opd.head.weights import HeadWeights, HiddenStates, working_dtype
from opd.objectives import OBJECTIVES

STATISTICS = ("student_entropy", "reverse_kl")
"""What TIP's selectors read: needed of every row before a weight is known."""


@dataclass(frozen=True)
class Contender:
    """One side of the comparison.

    statistics: a pass over all rows that gives STATISTICS, where weights depend on them and the loss does not give
    them by the way. loss_after: the loss once that pass was made, if it gains by what it found. every_row: masks, so
    that its cost does not depend on the share. compiles: by torch.compile, for the shapes that it meets. needs: the
    module that it calls.
    """

    loss: Callable[[Inputs, Tensor], Tensor]
    statistics: Callable[[Inputs], object] | None = None
    loss_after: Callable[[Inputs, Tensor, object], Tensor] | None = None
    every_row: bool = False
    compiles: bool = False
    dtypes: tuple[str, ...] = ("fp32", "bf16")
    needs: str = "torch"

    def missing(self) -> str | None:
        """Why it can't take part; None if it can."""
        try:
            with warnings.catch_warnings(action="ignore"):
                importlib.import_module(self.needs)
        except Exception as error:  # whatever a peer's import meets, the others can go on
            return f"{self.needs}: {reason_of(error)}"
        return None


def _models(inputs: Inputs) -> tuple[HiddenStates, HiddenStates]:
    return (
        HiddenStates(inputs.hidden_TH, HeadWeights(inputs.weight_VH)),
        HiddenStates(inputs.teacher_hidden_TH, HeadWeights(inputs.teacher_weight_VH)),
    )


def _ours(**kind: str) -> Contender:
    def settings(inputs: Inputs) -> HeadSettings:
        return HeadSettings(**kind, tile_bytes=tile_bytes_of(None, inputs.hidden_TH.device.type))

    def loss(inputs: Inputs, kept_T: Tensor, known: dict[str, Tensor] | None = None) -> Tensor:
        pay = DensePay(OBJECTIVES[inputs.objective](), kept_T / kept_T.sum())
        return head_loss(*_models(inputs), [pay], inputs.token_id_T, settings(inputs), known=known)

    def statistics(inputs: Inputs) -> dict[str, Tensor]:
        """With what the objective sums, as a step asks."""
        names = with_normalisers({*STATISTICS, OBJECTIVES[inputs.objective]().sums or STATISTICS[0]})
        return row_statistics(names, *_models(inputs), inputs.token_id_T, settings(inputs))

    return Contender(loss, statistics, loss_after=loss)


def _trl(inputs: Inputs, rows: Tensor | slice, beta: float) -> Tensor:
    """TRL's divergence of each of those rows; it comes with the student's entropy."""
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    student = (inputs.hidden_TH[rows], inputs.weight_VH, None)
    teacher = (inputs.teacher_hidden_TH[rows], inputs.teacher_weight_VH, None)
    return ChunkedDivergenceFunction.apply(*student, *teacher, beta)[0]


def trl_masked(inputs: Inputs, kept_T: Tensor) -> Tensor:
    """Every row projected, the others' divergence filled with 0: `_chunked_divergence_loss` on a CPU."""
    divergence_T = _trl(inputs, slice(None), BETAS[inputs.objective])
    return divergence_T.masked_fill(~kept_T, 0).sum() / kept_T.sum()


def trl_compact(inputs: Inputs, kept_T: Tensor) -> Tensor:
    """The rows picked by hand first; on CUDA TRL does so itself."""
    return _trl(inputs, kept_T, BETAS[inputs.objective]).mean()


@torch.no_grad()
def trl_statistics(inputs: Inputs) -> Tensor:
    """TRL's forward over every row: reverse KL and entropy."""
    return _trl(inputs, slice(None), 1.0)


def _liger(*, compiled: bool) -> Contender:
    """Liger's chunked JSD, the other rows under its ignore_index. Compiled is its default."""

    def loss(inputs: Inputs, kept_T: Tensor) -> Tensor:
        from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

        fused = LigerFusedLinearJSDLoss(0.0, 1.0, BETAS[inputs.objective], compiled=compiled)
        label_T = inputs.token_id_T.masked_fill(~kept_T, -100)
        return fused(inputs.hidden_TH, inputs.weight_VH, inputs.teacher_hidden_TH, inputs.teacher_weight_VH, label_T)

    return Contender(loss, every_row=True, compiles=compiled, needs="liger_kernel.chunked_loss")


def plain_torch(inputs: Inputs, kept_T: Tensor) -> Tensor:
    """All logits, log_softmax, autograd: what one writes first. float64 inputs make it the truth."""
    log_ps_TV = _log_softmax(inputs.hidden_TH, inputs.weight_VH)
    log_pt_TV = _log_softmax(inputs.teacher_hidden_TH, inputs.teacher_weight_VH)
    divergence_T = _divergence(inputs.objective, log_ps_TV, log_pt_TV).sum(-1)
    return divergence_T.masked_fill(~kept_T, 0).sum() / kept_T.sum()


def _log_softmax(hidden_TH: Tensor, weight_VH: Tensor) -> Tensor:
    logits_TV = hidden_TH @ weight_VH.T
    return logits_TV.to(working_dtype(logits_TV.dtype)).log_softmax(-1)


def _divergence(objective: str, log_ps_TV: Tensor, log_pt_TV: Tensor) -> Tensor:
    """Each outcome's part of the divergence."""

    def kl(log_p_TV: Tensor, log_q_TV: Tensor) -> Tensor:
        return F.kl_div(log_q_TV, log_p_TV, reduction="none", log_target=True)

    if objective == "reverse_kl":
        return kl(log_ps_TV, log_pt_TV)
    if objective == "forward_kl":
        return kl(log_pt_TV, log_ps_TV)
    log_m_TV = torch.logaddexp(log_ps_TV, log_pt_TV) - math.log(2)
    return (kl(log_ps_TV, log_m_TV) + kl(log_pt_TV, log_m_TV)) / 2


_TRL = "trl.kernels.chunked_divergence"
CONTENDERS = {
    "ours": _ours(),
    "ours-fast": replace(_ours(precision="fast"), dtypes=("bf16",)),
    "ours-fused": replace(_ours(kernels="fused"), compiles=True),
    "ours-fused-fast": replace(_ours(precision="fast", kernels="fused"), dtypes=("bf16",), compiles=True),
    "trl-compact": Contender(trl_compact, trl_statistics, needs=_TRL),
    "trl-masked": Contender(trl_masked, every_row=True, needs=_TRL),
    "liger-compiled": _liger(compiled=True),
    "liger-eager": _liger(compiled=False),
    "torch": Contender(plain_torch, every_row=True),
}
"""By name, in the order of a round."""
