"""Terms whose gradient is elementwise, strip by strip over the vocabulary.

With both models' log-normalisers and every Σf and Σf′ known, one sweep gives the gradient: the rows of all terms go
together and nothing is kept. Else the products of a slab of rows are kept between its sweeps, so that none is made
twice: normalisers, then sums that no statistic gives, then the gradient.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor

from opd.head.block import BlockGradient, BlockTotals
from opd.head.cost import kept_rows, streamed_rows
from opd.head.gradient import Gradients, Slab
from opd.head.kernels import run
from opd.head.pay import ChosenPay, DensePay, retained_rows
from opd.head.settings import HeadSettings
from opd.head.shard import VocabShard
from opd.head.strips import Memory, Strip, Strips, held
from opd.head.sums import READ, Running, log_normaliser
from opd.head.tile import TopScores
from opd.head.weights import HiddenStates, whole_teacher, working_dtype

MASS_TOLERANCE = 0.01
"""How far Σ p_S of a row may be from 1 before its normaliser is taken for other states'."""
ROUNDED_TOLERANCE = 0.3
"""The same of a slab's mean where products are rounded: a product over other rows may round one of them the other way,
and of a logit of 16 to 32 that is 13 % in bfloat16."""


def stream(
    student: HiddenStates,
    teacher: HiddenStates | TopScores | None,
    pays: list[DensePay | ChosenPay],
    settings: HeadSettings,
    known: Mapping[str, Tensor],
    gradients: Gradients,
    shard: VocabShard,
) -> Tensor:
    """The loss of those terms; their gradient is added."""
    dtype = working_dtype(student.hidden_NH.dtype)
    loss = student.hidden_NH.new_zeros((), dtype=dtype)
    rows_N = retained_rows(pays, len(student), student.hidden_NH.device)
    dense = [pay for pay in pays if isinstance(pay, DensePay)]
    teacher = whole_teacher(teacher) if any(pay.objective.reads_teacher for pay in dense) else None
    sums = [pay.objective.sums for pay in dense]
    names = {"student_normaliser"} | (set() if teacher is None else {"teacher_normaliser"}) | set(sums) - {None}
    is_known = None not in sums and names <= known.keys()
    product = settings.product_dtype(student.head.weight_VH.dtype).itemsize
    n = (
        streamed_rows(**settings.size_of(student.hidden_NH))
        if is_known
        else kept_rows(shard.widest, itemsize=product, tile_bytes=settings.tile_bytes)
    )
    kept: Memory = {}
    gradients.expect(slabs=-(-len(rows_N) // n))
    for rows_n in rows_N.split(n) if len(rows_N) else ():
        own, others = shard.slab(student, rows_n), None if teacher is None else shard.slab(teacher, rows_n)
        strips = Strips(own, others, settings, shard, None if is_known else kept)
        found = {name: known[name][rows_n] for name in names} if is_known else statistics_of(strips, names)
        slab = Slab(gradients, rows_n, strips.models["student"].hidden_nH, gradients.hidden_NH)
        paying = [pay.rows(rows_n) for pay in pays]
        loss += SlabSweep(strips, paying, settings, found, is_known=is_known).run(slab)
        del strips, slab  # or they would live through the next rows
    return loss


def statistics_of(strips: Strips, names: set[str]) -> dict[str, Tensor]:
    """Normalisers and sums by name, in float64, by one sweep."""
    running = Running(frozenset(names & READ.keys()), strips.temperature, strips)
    for strip in strips:
        running.see(strips.merge(strip))
    sums = running.gathered()
    return {
        name: READ[name](sums, name) if name in READ else log_normaliser(sums, name.removesuffix("_normaliser"))
        for name in names
    }


class SlabSweep:
    """What one slab of rows pays. found: `statistics_of` it; is_known: made by a former pass, maybe of other states."""

    def __init__(
        self,
        strips: Strips,
        pays: list[DensePay | ChosenPay],
        settings: HeadSettings,
        found: Mapping[str, Tensor],
        *,
        is_known: bool,
    ) -> None:
        self.strips, self.shard, self.settings, self.found = strips, strips.shard, settings, found
        self.student = strips.models["student"]
        self.head, self.dtype = self.student.head, self.student.dtype
        self.shift = {name: n for who in strips.models for name, n in self._shift(who).items()}
        self.dense = [pay for pay in pays if isinstance(pay, DensePay)]
        chosen = [pay for pay in pays if isinstance(pay, ChosenPay)]
        self.chosen = [ChosenPay(settings.outcome_of(pay.token_id_NK), pay.slope_NK) for pay in chosen]
        objectives = tuple(pay.objective for pay in self.dense)
        self.gradient = BlockGradient(objectives, settings.temperature, weighs=is_known)

    def run(self, slab: Slab) -> Tensor:
        """The loss; the gradient goes to the slab."""
        loss, pull_n = self._loss_and_pull()
        over = self.head.scale / self.settings.temperature
        factors = {f"weight_{i}": pay.weight_N.to(self.dtype) * over for i, pay in enumerate(self.dense)}
        factors |= {"pull": (pull_n * over).to(self.dtype)}
        stop_n, mass_n = torch.zeros_like(factors["pull"]), torch.zeros_like(factors["pull"])
        for strip in self.strips:
            caps_vn = self.head.cap_slope(self.strips.merge(strip).student_vn)
            mass_n += self._to_gradient_(strip, factors)
            self._add_chosen_(strip, over)
            stop_n += self._take_stop_(strip)
            grad_vn = strip.student_vn if caps_vn is None else strip.student_vn.mul_(caps_vn)
            slab.add(self.strips.rows_of(strip), grad_vn)
        self._give_stop(slab, self.shard.sum(stop_n))
        slab.close()
        if not self.gradient.weighs:
            return loss.to(self.dtype)
        return loss.to(self.dtype).masked_fill(self._is_of_others(self.shard.sum(mass_n)), torch.nan)

    def _is_of_others(self, mass_n: Tensor) -> Tensor:
        """Whether the normalisers are those of other states, by Σ p_S of each row."""
        off_n = (mass_n - 1).abs()
        if self.student.product_dtype == self.dtype:
            return (off_n > MASS_TOLERANCE).any()
        return off_n.mean() > ROUNDED_TOLERANCE

    def _loss_and_pull(self) -> tuple[Tensor, Tensor]:
        """Loss, and Σ over terms of what multiplies −p_S in each row's gradient; float64."""
        rows = len(self.student.hidden_nH)
        loss, pull_n = (self.student.hidden_nH.new_zeros(size, dtype=torch.float64) for size in ((), (rows,)))
        swept = iter(self._swept_totals([pay for pay in self.dense if pay.objective.sums is None]))
        for pay in self.dense:
            name, weight_n = pay.objective.sums, pay.weight_N.double()
            value_n, slope_n = next(swept) if name is None else pay.objective.totals(self.found[name].double())
            pays_n = weight_n != 0  # another term's row may be infinite in this one
            loss += (value_n * weight_n).where(pays_n, 0).sum()
            pull_n += (slope_n * weight_n).where(pays_n, 0)
        for pay in self.chosen:
            pull_n += pay.slope_NK.double().sum(-1)
        return loss, pull_n

    def _swept_totals(self, pays: list[DensePay]) -> list[list[Tensor]]:
        """Σf and Σf′ of each term, by a sweep of their own if there is a term."""
        work = BlockTotals(tuple(pay.objective for pay in pays), self.settings.temperature)
        totals: Counter[str] = Counter()
        for strip in self.strips if pays else ():
            for logits in self.strips.merge(strip).blocks():
                for name, part_n in run(work, logits | self.shift, fuse=self.strips.fuses).items():
                    totals[name] += part_n
        return [[self.shard.sum(totals[f"{of}_{i}"]) for of in ("value", "slope")] for i in range(len(pays))]

    def _shift(self, who: str) -> dict[str, Tensor]:
        """The model's normaliser in units of logits as two numbers, the second what the first rounds away."""
        shift_n = self.found[f"{who}_normaliser"].double() * self.settings.temperature
        high_n = shift_n.to(self.dtype)
        return {f"{who}_high": high_n, f"{who}_low": (shift_n - high_n).to(self.dtype)}

    def _to_gradient_(self, strip: Strip, factors: dict[str, Tensor]) -> Tensor | float:
        """Σ weight · f′ − p_S · pull in the place of the student's logits; returns the strip's Σ p_S if asked."""
        blocks = (logits | self.shift | factors for logits in strip.blocks())
        return sum(run(self.gradient, given, fuse=self.strips.fuses).get("mass", 0.0) for given in blocks)

    def _add_chosen_(self, strip: Strip, over: float) -> None:
        """The slopes of the chosen tokens that stand in the strip."""
        for pay in self.chosen:
            place_nK, inside_nK = strip.holds(pay.token_id_NK)
            slope_nK = torch.where(inside_nK, pay.slope_NK.to(self.dtype) * over, 0)
            strip.student_vn.scatter_add_(0, place_nK.T, slope_nK.T.to(strip.student_vn.dtype))

    def _take_stop_(self, strip: Strip) -> Tensor | float:
        """The gradient of the end tokens' outcome, if it stands in the strip; all their columns are left at 0."""
        taken = 0.0
        for place, token in enumerate(self.settings.stop if self.settings.merges else ()):
            if strip.start <= token < strip.start + len(strip.student_vn):
                taken = taken if place else strip.student_vn[token - strip.start].clone()
                strip.student_vn[token - strip.start] = 0
        return taken

    def _give_stop(self, slab: Slab, grad_n: Tensor) -> None:
        """Each end token's share p_i / P of the outcome's gradient."""
        if self.settings.merges:
            caps_ns = self.head.cap_slope(self.student.stop_ns)
            grad_ns = (self.student.stop_ns / self.settings.temperature).softmax(-1) * grad_n[:, None]
            grad_ns = grad_ns if caps_ns is None else grad_ns * caps_ns
            places, rows = held(self.settings.stop, self.head)
            slab.add_tokens(rows, grad_ns[:, places])
