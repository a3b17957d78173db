"""What a step says about itself. Every metric has one row in METRICS: unit and meaning; README shows the table."""

from __future__ import annotations

import math
import resource
import sys
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from opd.batch import Rollout, TokenTable
from opd.objectives.base import Objective
from opd.selection.scaling import clip_at_quantile, min_max, scaled_entropy

Metrics = dict[str, float | int | None]
"""What a step measured, by name; METRICS says what each means."""

PHASES = {
    "start": "start: engine, teacher, student",
    "step": "steps",
    "evaluate": "evaluate, the teacher too",
    "checkpoint": "checkpoints",
    "export": "export",
}
"""Phases in order of time, in words; none is part of another, and together they are the run."""

STEP_PHASES = ("generate", "reward", "score", "train", "sync")
"""Phases that are parts of `step`."""

METRICS: dict[str, tuple[str, str]] = {
    "loss": ("nats", "sum of the terms, each a mean over its own retained tokens of the step"),
    "lr": ("", "learning rate of the step"),
    "grad_norm": ("", "global norm of the gradient before clipping; null in a skipped step"),
    "skipped": ("0 or 1", "the step changed nothing on any rank: not finite on some, or without a token to train on"),
    "reward": ("share", "mean reward of all graded rollouts, chosen or not; null where the recipe names no answers"),
    "tokens": ("tokens", "trained tokens of the step, C"),
    "length": ("tokens", "mean sampled tokens of a rollout"),
    "truncated": ("share", "rollouts cut off at rollout.max_new_tokens"),
    "failed": ("share", "rollouts that ended in an engine error"),
    "repetitive": ("share", "rollouts that train whose text zlib shrinks more than tenfold: loops"),
    "stop_density": ("share", "sampled tokens that end a turn"),
    "student_stop_mass": ("probability", "of ending the turn, by the student, mean over all trained tokens"),
    "teacher_stop_mass": ("probability", "the same by the teacher"),
    "advantage": ("", "absolute value, mean over rollouts; where the recipe names an advantage"),
    "rollouts_kept": ("share", "rollouts of which some token trains"),
    "schedule/*": ("", "the value of a scheduled key at this step"),
    "term*/kept": ("share", "tokens that the term retains"),
    "term*/tokens": ("tokens", "tokens that the term retains"),
    "term*/weight": ("", "mean weight of the retained tokens: below 1 for a gate"),
    "term*/divergence_kept": ("share", "share of the step's total reverse KL that stands on the retained tokens"),
    "term*/distrusted": (
        "share",
        "tgdpo: tokens of its pairs with f ≤ 0, which push the wrong way or, clamped, not",
    ),
    "student_entropy": ("nats", "H_S, mean over all trained tokens"),
    "teacher_entropy": ("nats", "H_T, mean over all trained tokens"),
    "reverse_kl": ("nats", "KL(S‖T), mean over all trained tokens of this step's rollouts"),
    "forward_kl": ("nats", "KL(T‖S), mean over all trained tokens of this step's rollouts"),
    "sampled_reverse_kl": ("nats", "log p_S − log p_T of the sampled token, mean"),
    "gap": ("nats", "absolute difference of the sampled token's log p, engine − trainer, mean: rises without sync"),
    "gap_p99": ("nats", "the same, 99th percentile"),
    "Q1": ("share", "tokens with ĥ and δ̂ above metrics.quadrant_cuts: unsure, and the teacher disagrees (TIP)"),
    "Q2": ("share", "ĥ above its cut only: unsure, and the teacher agrees"),
    "Q3": ("share", "δ̂ above its cut only: sure, and the teacher disagrees"),
    "Q4": ("share", "neither"),
    "Q1_at_medians": ("share", "Q1 with both cuts at their medians, where Q1 + Q2 = Q1 + Q3 = ½: one free number"),
    "policy_version": ("steps", "steps that the weights which sampled the rollouts had seen, mean over tokens"),
    "step": ("steps", "optimizer steps so far, this one included"),
    "time/*": (
        "s",
        f"wall seconds of a phase: {', '.join(STEP_PHASES)} and their sum, step; what is done between two "
        "steps (start, evaluate, checkpoint) stands in the line of the next step",
    ),
    "memory/*": (
        "GiB",
        "peak resident (CPU) or allocated (CUDA, without vLLM's weights and cache) memory of a phase on rank 0",
    ),
    "tokens_per_second": ("tokens/s", "trained tokens over time/step, all ranks together"),
}

REPORTED = (
    "student_entropy",
    "teacher_entropy",
    "reverse_kl",
    "forward_kl",
    "student_stop_mass",
    "teacher_stop_mass",
)
"""Statistics whose mean over all trained tokens is a metric."""


def rollout_metrics(table: TokenTable, rollouts: list[Rollout], *, stop: tuple[int, ...]) -> Metrics:
    """What is known of all the step's rollouts, those too that no term trains on; the same on every rank."""
    metrics = {
        "reward": _mean(table.reward_B[~table.reward_B.isnan()]),
        "length": _mean(table.length_B),
        "truncated": _mean(torch.tensor([r.finish == "length" for r in rollouts])),
        "failed": _mean(torch.tensor([r.finish == "error" for r in rollouts])),
        "policy_version": _mean(torch.tensor([v for r in rollouts for v in r.versions])),
        "stop_density": _mean(torch.isin(table.token_id_C, torch.tensor(stop, dtype=torch.long))),
    }
    if not table.advantage_B.isnan().all():
        metrics["advantage"] = _mean(table.advantage_B.abs())
    return metrics


def token_metrics(table: TokenTable, weights: list[Tensor], *, cuts: tuple[float, float]) -> Metrics:
    """What follows from the table that trained and its terms' weights; the same on every rank."""
    metrics: Metrics = {"tokens": float(len(table))}
    for i, weight_C in enumerate(weights):
        kept_C = weight_C > 0
        metrics |= {
            f"term{i}/kept": _mean(kept_C),
            f"term{i}/tokens": float(kept_C.sum()),
            f"term{i}/weight": _mean(weight_C[kept_C]),
        }
        if "reverse_kl" in table.statistics:
            total = table["reverse_kl"].sum()
            metrics[f"term{i}/divergence_kept"] = (
                0.0 if total == 0 else float(table["reverse_kl"][kept_C].sum() / total)
            )
    for name in REPORTED:
        if name in table.statistics:
            metrics[name] = _mean(table[name])
    if {"student_logprob", "teacher_logprob"} <= table.statistics.keys():
        metrics["sampled_reverse_kl"] = _mean(table["student_logprob"] - table["teacher_logprob"])
    if "trainer_logprob" in table.statistics:
        gap_C = (table["trainer_logprob"] - table.sampler_logprob_C).abs().double()
        metrics |= {"gap": _mean(gap_C), "gap_p99": _quantile(gap_C, 0.99)}
    if {"student_entropy", "reverse_kl"} <= table.statistics.keys():
        h_C, d_C = scaled_entropy(table["student_entropy"]), min_max(table["reverse_kl"])
        metrics |= quadrants(h_C, d_C, cuts=cuts)
        if len(table):
            at_medians = quadrants(h_C, d_C, cuts=(_quantile(h_C, 0.5), _quantile(d_C, 0.5)))
            metrics["Q1_at_medians"] = at_medians["Q1"]
    return metrics


def objective_metrics(objectives: list[Objective], table: TokenTable, weights: list[Tensor]) -> Metrics:
    """What each term's objective says of the table that trained; the same on every rank."""
    terms = enumerate(zip(objectives, weights, strict=True))
    return {f"term{i}/{name}": value for i, (o, w_C) in terms for name, value in o.metrics(table, w_C).items()}


def training_share(table: TokenTable, weights: list[Tensor], *, of: int) -> float:
    """Share of so many rollouts of which some token trains."""
    paying_C = torch.stack([~(weight_C <= 0) for weight_C in weights]).any(0)
    return len(table.rollout_C[paying_C].unique()) / max(1, of)


def repetitive(texts: list[str]) -> float:
    """Share of texts that zlib shrinks more than tenfold: loops. NaN of none.

    >>> repetitive(["a" * 1000, "The answer is 12."])
    0.5
    """
    sizes = [(len(text.encode()), len(zlib.compress(text.encode()))) for text in texts]
    return sum(plain > 10 * packed for plain, packed in sizes) / len(sizes) if sizes else math.nan


def quadrants(h_C: Float[Tensor, " C"], d_C: Float[Tensor, " C"], *, cuts: tuple[float, float]) -> dict[str, float]:
    """Shares of TIP's four quadrants (arXiv 2604.14084); high is strictly above its cut."""
    unsure_C, disagreeing_C = h_C > cuts[0], d_C > cuts[1]
    return {
        "Q1": _mean(unsure_C & disagreeing_C),
        "Q2": _mean(unsure_C & ~disagreeing_C),
        "Q3": _mean(~unsure_C & disagreeing_C),
        "Q4": _mean(~unsure_C & ~disagreeing_C),
    }


def _mean(values: Tensor) -> float:
    return float(values.double().mean()) if values.numel() else math.nan


def _quantile(values: Tensor, q: float) -> float:
    return float(clip_at_quantile(values, q).max()) if values.numel() else math.nan


class Clock:
    """Wall seconds and peak memory of each phase since the last `take`; phases may stand within phases."""

    def __init__(self) -> None:
        self.since: dict[str, float] = {}
        self._open: list[str] = []

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Measure what happens inside as `phase`; a phase may come several times a step."""
        self._note_peak()
        self._open.append(phase)
        began = time.perf_counter()
        try:
            yield
        finally:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.since[f"time/{phase}"] = self.since.get(f"time/{phase}", 0.0) + time.perf_counter() - began
            self._note_peak()
            self._open.pop()

    def take(self) -> dict[str, float]:
        """The figures since the last call; the next ones start empty."""
        taken, self.since = self.since, {}
        return taken

    def _note_peak(self) -> None:
        peak = _peak_gib()
        for name in (f"memory/{phase}" for phase in self._open):
            self.since[name] = max(self.since.get(name, 0.0), peak)
        reset = torch.cuda.reset_peak_memory_stats if torch.cuda.is_available() else reset_resident_peak
        with suppress(OSError):
            reset()


def resident_peak(pid: int | str = "self") -> int:
    """Most bytes that a process held resident (VmHWM) since its start or last reset; OSError where none can be read."""
    status = Path(f"/proc/{pid}/status").read_text()
    if "VmHWM:" not in status:
        raise OSError(f"/proc/{pid}/status has no VmHWM")
    return int(status.split("VmHWM:")[1].split()[0]) << 10


def reset_resident_peak() -> None:
    """Set this process's `resident_peak` back to what it holds now; OSError where the kernel refuses."""
    Path("/proc/self/clear_refs").write_text("5")


def _pooled_bytes() -> int:
    """Bytes of weights and cache of a vLLM engine that can sleep: torch counts them as allocated while it does, too."""
    cumem = sys.modules.get("vllm.device_allocator.cumem")
    pools = cumem and cumem.CuMemAllocator.instance
    return pools.get_current_usage() if pools else 0


def _peak_gib() -> float:
    if torch.cuda.is_available():
        return max(0, torch.cuda.max_memory_allocated() - _pooled_bytes()) / 2**30
    try:
        return resident_peak() / 2**30
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
