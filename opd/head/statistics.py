"""Row statistics: entropies, divergences and log-probs of each trained token, from one sweep over the vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from opd.head.cost import streamed_rows
from opd.head.settings import LEAST, HeadSettings
from opd.head.shard import VocabShard, whole_of
from opd.head.strips import Strip, Strips
from opd.head.sums import READ, Running, log_normaliser
from opd.head.weights import HiddenStates, whole_teacher, working_dtype

NORMALISERS = ("student_normaliser", "teacher_normaliser")
"""log Σ e^(logit / temperature), float64: with them a later pass over the same states has each probability at once."""


@dataclass(frozen=True)
class Statistic:
    """How a column of the token table comes from a sweep: `of(swept)` is [n], or [n, K] for candidates.

    sums: what it asks of the sums over the vocabulary; reported: whether it is a number that a step can report.
    """

    of: Callable[[Swept], Tensor]
    needs_teacher: bool
    sums: frozenset[str] = frozenset()
    reported: bool = True


def top(log_p_nV: Float[Tensor, "n V"], k: int) -> Int[Tensor, "n K"]:
    """The ids of the k largest, highest first; ties go to the lower id.

    >>> top(torch.tensor([[0.0, 2.0, 1.0, 1.0]]), 2).tolist()
    [[1, 2]]
    """
    value_nK, id_nK = log_p_nV.topk(min(k, log_p_nV.shape[-1]), dim=-1)
    k, least_n1 = value_nK.shape[-1], value_nK[:, -1:]
    # rows that tie at the border; a GPU would have to be waited for to know them, and takes all
    tied = slice(None) if log_p_nV.is_cuda else (log_p_nV >= least_n1).sum(-1) > k
    order_V = torch.arange(log_p_nV.shape[-1], dtype=torch.int32, device=log_p_nV.device)
    row_nV, least_n1 = log_p_nV[tied], least_n1[tied]
    order_nV = torch.where(row_nV == least_n1, order_V, len(order_V)).masked_fill_(row_nV > least_n1, -1)
    id_nK[tied] = order_nV.topk(k, dim=-1, largest=False).indices
    id_nK = id_nK.sort(dim=-1).values
    order_nK = log_p_nV.gather(-1, id_nK).sort(dim=-1, descending=True, stable=True).indices
    return id_nK.gather(-1, order_nK)


class Best:
    """The K likeliest outcomes of one model so far, highest first, ties to the lower id; and both models' logits."""

    def __init__(self, of: str, k: int) -> None:
        self.of, self.k = of, k
        self.id_nK: Tensor | None = None
        self.logits: dict[str, Tensor] = {}

    def see(self, strip: Strip) -> None:
        """Take in a strip; strips come in order."""
        place_nK = top(strip.logits[self.of].T, self.k)
        id_nK, found = place_nK + strip.start, {w: x_vn.T.gather(-1, place_nK) for w, x_vn in strip.logits.items()}
        if self.id_nK is not None:
            id_nK = torch.cat([self.id_nK, id_nK], -1)
            found = {who: torch.cat([self.logits[who], logits_nK], -1) for who, logits_nK in found.items()}
        order_nK = found[self.of].sort(dim=-1, descending=True, stable=True).indices[:, : self.k]
        self.id_nK = id_nK.gather(-1, order_nK)
        self.logits = {who: logits_nK.gather(-1, order_nK) for who, logits_nK in found.items()}

    def share(self, shard: VocabShard) -> None:
        """Those of all shards."""
        lacking = self.k - self.id_nK.shape[-1]
        id_RnK = shard.gather(F.pad(self.id_nK, (0, lacking)))
        found = {who: shard.gather(F.pad(x_nK, (0, lacking), value=-torch.inf)) for who, x_nK in self.logits.items()}
        order_nK = _side_by_side(found[self.of]).sort(dim=-1, descending=True, stable=True).indices[:, : self.k]
        self.id_nK = _side_by_side(id_RnK).gather(-1, order_nK)
        self.logits = {who: _side_by_side(x_RnK).gather(-1, order_nK) for who, x_RnK in found.items()}


class Swept:
    """What one sweep over the vocabulary found of n rows. names: the statistics that will be read."""

    def __init__(self, strips: Strips, token_id_n: Int[Tensor, " n"], names: list[str], settings: HeadSettings) -> None:
        self.settings, self.models, self.token_id_n = settings, strips.models, token_id_n
        asks = frozenset().union(*(STATISTICS[name].sums for name in names))
        zeros_n = strips.models["student"].stop_n.new_zeros(len(token_id_n))
        self.token_logit = {who: zeros_n.clone() for who in self.models}
        self.seen_n = zeros_n.clone()
        self.candidates = Best("student", min(settings.candidates, strips.shard.vocabulary))
        self.teacher_top = Best("teacher", 1)
        ranked = [b for b, prefix in self._ranked() if any(name.startswith(prefix) for name in names)]
        running = Running(asks, settings.temperature, strips)
        sampler = Running(frozenset(), settings.sampler_temperature, strips)
        is_rounded = settings.merges and strips.models["student"].is_raw  # the class's logit, and every sum with it
        is_another = is_rounded or settings.sampler_temperature != settings.temperature
        sums_apart = "trainer_logprob" in names and is_another
        for strip in strips:
            self._pick(strip)
            if sums_apart:
                sampler.see(strip, student_only=True)
            strips.merge(strip)
            running.see(strip)
            for best in ranked:
                best.see(strip)
        for best in ranked:
            best.share(strips.shard)
        foreign_n = strips.shard.sum(self.seen_n) == 0  # a token of no head has no number
        for who, logit_n in self.token_logit.items():
            self.token_logit[who] = strips.shard.sum(logit_n).masked_fill(foreign_n, torch.nan)
        self.sums = running.gathered()
        self.sampler_sums = sampler.gathered() if sums_apart else self.sums

    def normaliser(self, who: str) -> Float[Tensor, " n"]:
        """log Σ e^logit, float64."""
        return log_normaliser(self.sums, who)

    def logprob(self, who: str) -> Float[Tensor, " n"]:
        """log p of the sampled outcome."""
        logit_n = self.token_logit[who].double()
        if self.settings.merges:
            stop = torch.tensor(self.settings.stop, device=logit_n.device)
            logit_n = torch.where(torch.isin(self.token_id_n, stop), self.models[who].stop_n.double(), logit_n)
        return _never(logit_n) / self.settings.temperature - self.normaliser(who)

    def trainer_logprob(self) -> Float[Tensor, " n"]:
        """log p of the sampled token itself, at the sampler's temperature."""
        logit_n = _never(self.token_logit["student"].double())
        return logit_n / self.settings.sampler_temperature - log_normaliser(self.sampler_sums, "student")

    def stop_mass(self, who: str) -> Float[Tensor, " n"]:
        """Probability of all end tokens together."""
        return (self.models[who].stop_n.double() / self.settings.temperature - self.normaliser(who)).exp()

    def best_logprob(self, best: Best, who: str) -> Float[Tensor, "n K"]:
        """log p of the likeliest outcomes."""
        return _never(best.logits[who].double()) / self.settings.temperature - self.normaliser(who)[:, None]

    def _ranked(self) -> tuple[tuple[Best, str], ...]:
        return (self.candidates, "candidate_"), (self.teacher_top, "teacher_top_")

    def _pick(self, strip: Strip) -> None:
        place_n, inside_n = strip.holds(self.token_id_n)
        self.seen_n += inside_n
        for who, logits_vn in strip.logits.items():
            here_n = logits_vn.gather(0, place_n[None]).squeeze(0)
            self.token_logit[who] += torch.where(inside_n, here_n, 0)


def _never(logit: Tensor) -> Tensor:
    """−inf where LEAST stands for it."""
    return logit.masked_fill(logit <= LEAST / 2, -torch.inf)


def _side_by_side(x_RnK: Tensor) -> Tensor:
    """[R, n, K] as [n, R·K]."""
    return x_RnK.transpose(0, 1).flatten(1)


def _of_sums(name: str, *, needs_teacher: bool) -> Statistic:
    return Statistic(lambda s: READ[name](s.sums, name), needs_teacher, frozenset([name]))


def _of_best(of: Callable[[Swept], Tensor], *, needs_teacher: bool) -> Statistic:
    return Statistic(of, needs_teacher, reported=False)


STATISTICS: dict[str, Statistic] = {
    "student_entropy": _of_sums("student_entropy", needs_teacher=False),
    "teacher_entropy": _of_sums("teacher_entropy", needs_teacher=True),
    "reverse_kl": _of_sums("reverse_kl", needs_teacher=True),
    "forward_kl": _of_sums("forward_kl", needs_teacher=True),
    "student_logprob": Statistic(lambda s: s.logprob("student"), needs_teacher=False),
    "teacher_logprob": Statistic(lambda s: s.logprob("teacher"), needs_teacher=True),
    "trainer_logprob": Statistic(lambda s: s.trainer_logprob(), needs_teacher=False),
    "student_stop_mass": Statistic(lambda s: s.stop_mass("student"), needs_teacher=False),
    "teacher_stop_mass": Statistic(lambda s: s.stop_mass("teacher"), needs_teacher=True),
    "student_normaliser": Statistic(lambda s: s.normaliser("student"), needs_teacher=False, reported=False),
    "teacher_normaliser": Statistic(lambda s: s.normaliser("teacher"), needs_teacher=True, reported=False),
    "candidate_id": _of_best(lambda s: s.candidates.id_nK, needs_teacher=False),
    "candidate_student_logprob": _of_best(lambda s: s.best_logprob(s.candidates, "student"), needs_teacher=False),
    "candidate_teacher_logprob": _of_best(lambda s: s.best_logprob(s.candidates, "teacher"), needs_teacher=True),
    "teacher_top_id": _of_best(lambda s: s.teacher_top.id_nK[:, 0], needs_teacher=True),
    "teacher_top_student_logprob": _of_best(
        lambda s: s.best_logprob(s.teacher_top, "student")[:, 0], needs_teacher=True
    ),
    "teacher_top_logprob": _of_best(lambda s: s.best_logprob(s.teacher_top, "teacher")[:, 0], needs_teacher=True),
}
"""Every statistic by name, in nats (ids and masses excepted), at the loss's temperature, of merged outcomes.

`trainer_logprob` alone is raw and at the sampler's temperature: what the sampler's own log-prob is compared with.
`*_stop_mass`: probability of the end tokens together. `candidate_*`: the student's top K, highest first, [n, K].
"""

MEASURED: frozenset[str] = frozenset(name for name, statistic in STATISTICS.items() if statistic.reported)
"""Statistics that a step can report as numbers."""


def with_normalisers(needs: Iterable[str]) -> set[str]:
    """The names, and the normalisers that come with them for nothing."""
    names = set(needs)
    return names | set(NORMALISERS[: 1 + reads_teacher(names)] if names else ())


def reads_teacher(names: Iterable[str]) -> bool:
    """Whether some of these statistics need the teacher's distribution; other names are passed over."""
    return any(name in STATISTICS and STATISTICS[name].needs_teacher for name in names)


@torch.no_grad()
def row_statistics(
    needs: Iterable[str],
    student: HiddenStates,
    teacher: HiddenStates | None,
    token_id_N: Int[Tensor, " N"],
    settings: HeadSettings,
    shard: VocabShard | None = None,
) -> dict[str, Tensor]:
    """The statistics named in `needs` for every row: [N] each, [N, K] for candidates.

    One sweep over the vocabulary for all of them. The teacher's head is touched only where a statistic needs it. Raises
    KeyError for a name that does not exist, and ValueError where a teacher is needed and None. shard: which part of the
    vocabulary both heads hold, where they hold one; the N tokens are then those of all shards.
    """
    shard = shard or whole_of(student.head)
    names = sorted(set(needs))
    if unknown := set(names) - set(STATISTICS):
        raise KeyError(f"no such statistic: {sorted(unknown)}; there are {tuple(STATISTICS)}")
    teacher = whole_teacher(teacher) if reads_teacher(names) else None
    dtype = working_dtype(student.hidden_NH.dtype)
    n = streamed_rows(**settings.size_of(student.hidden_NH))
    parts: dict[str, list[Tensor]] = {name: [] for name in names}
    for rows_n in torch.arange(len(token_id_N), device=token_id_N.device).split(n) if names else []:
        others = None if teacher is None else shard.slab(teacher, rows_n)
        strips = Strips(shard.slab(student, rows_n), others, settings, shard)
        with torch.autocast(rows_n.device.type, enabled=False):
            swept = Swept(strips, token_id_N[rows_n], names, settings)
        for name in names:
            column = STATISTICS[name].of(swept)
            parts[name].append(column if name in NORMALISERS else column.to(dtype))
        del strips, swept  # or they would live through the next rows
    return {name: torch.cat(columns) for name, columns in parts.items()}
