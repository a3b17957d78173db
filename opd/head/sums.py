"""Sums over the vocabulary, block by block: log-normalisers, entropies and divergences of both models' rows.

Every sum is of logits less the largest so far, so that an entropy of 1e-6 has digits: H = log Σe^x − Σe^x·x / Σe^x with
the first sum in float64 and a second whose largest term is 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from opd.head.cost import MOST_PARTS
from opd.head.kernels import run
from opd.head.settings import LEAST
from opd.head.strips import Strip, Strips
from opd.head.weights import working_dtype

Sums = dict[str, Tensor]
"""By name, [n] each in float64: `student_max`, `student_sum` (Σ e^x of x, the logits less the largest), the teacher's
(y), and as asked `student_entropy` Σ e^x·x, `teacher_entropy` Σ e^y·y, `reverse_kl` Σ e^x·(x − y), `forward_kl`
Σ e^y·(y − x)."""

ENTROPIES = {"student_entropy": "student", "teacher_entropy": "teacher"}
KLS = {"reverse_kl": ("student", "teacher"), "forward_kl": ("teacher", "student")}


def block_sums(asks: frozenset[str], logits: dict[str, Float[Tensor, "n b"]], temperature: float) -> Sums:
    """The sums of one block over the temperature; `logits` of each model by name."""
    found, less, exp = {}, {}, {}
    for who, logits_nb in logits.items():
        logits_nb = logits_nb.to(working_dtype(logits_nb.dtype))
        largest_n = logits_nb.amax(-1)
        less[who] = logits_nb - largest_n[:, None]
        exp[who] = (less[who] if temperature == 1.0 else less[who].div_(temperature)).exp()
        found[f"{who}_max"] = largest_n.double() / temperature
        found[f"{who}_sum"] = exp[who].sum(-1, dtype=torch.float64)
    for name, who in ENTROPIES.items():  # before the divergences, which overwrite both
        if name in asks:
            found[name] = (exp[who] * less[who]).sum(-1).double()
    if not asks.isdisjoint(KLS):
        ratio_nb = less["student"].sub_(less["teacher"])
        for name, (who, _) in KLS.items():
            if name in asks:
                sign = 1 if who == "student" else -1
                found[name] = sign * exp[who].mul_(ratio_nb).sum(-1).double()
    return found


@dataclass(frozen=True)
class BlockSums:
    """`block_sums` as a work (`kernels.py`)."""

    asks: frozenset[str]
    temperature: float

    def __call__(self, logits: dict[str, Tensor]) -> Sums:
        return block_sums(self.asks, logits, self.temperature)


def ruled_out_sums(asks: frozenset[str], logits: dict[str, Float[Tensor, "n b"]]) -> Sums:
    """For each divergence asked, how many outcomes of a block one model rules out and the other does.

    Only a bias can rule one out.
    """
    found = {}
    for name, (who, other) in KLS.items():
        if name in asks:
            does_nb = logits[who] > LEAST / 2
            found[f"{name}_ruled_out"] = (does_nb & (logits[other] <= LEAST / 2)).sum(-1).double()
    return found


class Running:
    """The sums of the blocks seen so far."""

    def __init__(self, asks: frozenset[str], temperature: float, strips: Strips) -> None:
        self.asks, self.shard, self.fuses = asks, strips.shard, strips.fuses
        self.work = BlockSums(asks, temperature)
        self.rules_out = any(model.head.bias_V is not None for model in strips.models.values())
        self._parts: list[Sums] = []

    def see(self, strip: Strip, *, student_only: bool = False) -> None:
        """Take in a strip."""
        for logits in strip.blocks():
            logits = {"student": logits["student"]} if student_only else logits
            sums = run(self.work, logits, fuse=self.fuses)
            if self.rules_out and not student_only:
                sums |= ruled_out_sums(self.asks, logits)
            self._parts.append(sums)
        if len(self._parts) >= MOST_PARTS:
            self._parts = [merged(self._parts)]

    def gathered(self) -> Sums:
        """The sums of all of them, over all shards of the vocabulary; a collective."""
        own = merged(self._parts)
        all_Rkn = self.shard.gather(torch.stack([*own.values()]))
        return merged([dict(zip(own, part_kn, strict=True)) for part_kn in all_Rkn])


def merged(parts: list[Sums]) -> Sums:
    """The sums of several blocks as one's."""
    all_kn = {name: torch.stack([part[name] for part in parts]) for name in parts[0]}
    found, shift, scale = {}, {}, {}
    for who in ("student", "teacher"):
        if f"{who}_max" in all_kn:
            found[f"{who}_max"] = all_kn[f"{who}_max"].amax(0)
            shift[who] = all_kn[f"{who}_max"] - found[f"{who}_max"]
            scale[who] = shift[who].exp()
            found[f"{who}_sum"] = (scale[who] * all_kn[f"{who}_sum"]).sum(0)
    for name, who in ENTROPIES.items():
        if name in all_kn:
            found[name] = (scale[who] * (all_kn[name] + all_kn[f"{who}_sum"] * shift[who])).sum(0)
    for name, (who, other) in KLS.items():
        if name in all_kn:
            found[name] = (scale[who] * (all_kn[name] + all_kn[f"{who}_sum"] * (shift[who] - shift[other]))).sum(0)
    for name in sorted(all_kn.keys() - found.keys()):  # ranks stack them, and a set's order is a process's own
        found[name] = all_kn[name].sum(0)
    return found


def log_normaliser(sums: Sums, who: str) -> Float[Tensor, " n"]:
    """log Σ e^logit."""
    return sums[f"{who}_max"] + sums[f"{who}_sum"].log()


def entropy(sums: Sums, name: str) -> Float[Tensor, " n"]:
    """H = −Σ p log p, nats."""
    total_n = sums[f"{ENTROPIES[name]}_sum"]
    return (total_n.log() - sums[name] / total_n).clamp_min(0)


def kl(sums: Sums, name: str) -> Float[Tensor, " n"]:
    """KL(p‖q) = Σ p (log p − log q), nats; rounding below zero is cut off; inf where q rules out what p does."""
    who, other = KLS[name]
    total_n, others_n = sums[f"{who}_sum"], sums[f"{other}_sum"]
    kl_n = (sums[name] / total_n - total_n.log() + others_n.log()).clamp_min(0)
    return kl_n if f"{name}_ruled_out" not in sums else kl_n.masked_fill(sums[f"{name}_ruled_out"] > 0, torch.inf)


READ: dict[str, Callable[[Sums, str], Tensor]] = dict.fromkeys(ENTROPIES, entropy) | dict.fromkeys(KLS, kl)
"""How each ask is read from its sums."""
