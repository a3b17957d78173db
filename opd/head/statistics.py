"""Row statistics: entropies, divergences and log-probs of each trained token, from one pass over tiles of rows."""

from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from opd.head.cost import tile_rows
from opd.head.weights import HiddenStates, working_dtype


def entropy(log_p_nV: Float[Tensor, "n V"]) -> Float[Tensor, " n"]:
    """H = −Σ p log p, nats."""
    return -(log_p_nV.exp() * log_p_nV).sum(-1)


def kl(log_p_nV: Float[Tensor, "n V"], log_q_nV: Float[Tensor, "n V"]) -> Float[Tensor, " n"]:
    """KL(p‖q) = Σ p (log p − log q), nats; rounding below zero is cut off."""
    return (log_p_nV.exp() * (log_p_nV - log_q_nV)).sum(-1).clamp_min(0)


STUDENT: dict[str, Callable[[Tensor], Tensor]] = {"student_entropy": entropy}
TEACHER: dict[str, Callable[[Tensor], Tensor]] = {"teacher_entropy": entropy}
BOTH: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "reverse_kl": kl,
    "forward_kl": lambda log_ps_nV, log_pt_nV: kl(log_pt_nV, log_ps_nV),
}
SAMPLED = ("student_logprob", "teacher_logprob", "behaviour_logprob")
"""log p_S and log p_T of the sampled token at the loss's temperature; log p_S at the sampler's (`behaviour`)."""

STATISTICS: tuple[str, ...] = (*STUDENT, *TEACHER, *BOTH, *SAMPLED)
NEEDS_TEACHER = frozenset({*TEACHER, *BOTH, "teacher_logprob"})


@torch.no_grad()
def row_statistics(
    needs: Iterable[str],
    student: HiddenStates,
    teacher: HiddenStates | None,
    token_id_N: Int[Tensor, " N"],
    *,
    temperature: float,
    sampler_temperature: float,
    tile_bytes: int,
) -> dict[str, Float[Tensor, " N"]]:
    """The statistics named in `needs` (see STATISTICS) for every row, [N] each, in nats.

    The teacher's head is touched only where a statistic needs it. Raises KeyError for a name that does not exist.
    """
    names = sorted(set(needs))
    if unknown := set(names) - set(STATISTICS):
        raise KeyError(f"no such statistic: {sorted(unknown)}; there are {STATISTICS}")
    dtype = working_dtype(student.hidden_NH.dtype)
    columns = {name: torch.zeros(len(student), dtype=dtype, device=student.hidden_NH.device) for name in names}
    if not names:
        return columns
    n = tile_rows(student.head.vocabulary, itemsize=dtype.itemsize, tile_bytes=tile_bytes)
    for rows_n in torch.arange(len(student), device=student.hidden_NH.device).split(n):
        logits_nV = student.head.logits(student.hidden_NH[rows_n])
        log_ps_nV = torch.log_softmax(logits_nV / temperature, dim=-1)
        if "behaviour_logprob" in columns:
            columns["behaviour_logprob"][rows_n] = _sampled(
                torch.log_softmax(logits_nV / sampler_temperature, dim=-1), token_id_N[rows_n]
            )
        del logits_nV
        log_pt_nV = (
            teacher.log_probs(rows_n, temperature) if teacher is not None and NEEDS_TEACHER & set(names) else None
        )
        for name in names:
            if name != "behaviour_logprob":
                columns[name][rows_n] = _statistic(name, log_ps_nV, log_pt_nV, token_id_N[rows_n])
    return columns


def _statistic(name: str, log_ps_nV: Tensor, log_pt_nV: Tensor | None, token_id_n: Tensor) -> Tensor:
    if name in STUDENT:
        return STUDENT[name](log_ps_nV)
    if name == "student_logprob":
        return _sampled(log_ps_nV, token_id_n)
    if log_pt_nV is None:
        raise ValueError(f"statistic {name!r} needs a teacher's distribution, and none was given")
    if name in TEACHER:
        return TEACHER[name](log_pt_nV)
    if name == "teacher_logprob":
        return _sampled(log_pt_nV, token_id_n)
    return BOTH[name](log_ps_nV, log_pt_nV)


def _sampled(log_p_nV: Tensor, token_id_n: Tensor) -> Tensor:
    return log_p_nV.gather(-1, token_id_n[:, None]).squeeze(-1)
