"""One optimizer step, from rollouts to new weights: choose, pack, score, plan, train. Read this second.

Every number that a token's weight depends on is known before any gradient, from one table that is the same on every
rank; so no result depends on micro-batches or on how many ranks share the work. Where each rollout decides for itself
(counts are arithmetic), scoring and training are one pass with the same gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from opd.batch import Batch, Rollout, TeacherScores, TokenTable, token_table
from opd.config import Recipe, Term
from opd.distributed import Ranks, Trainer
from opd.head.loss import Payment
from opd.head.statistics import STATISTICS
from opd.metrics import Clock, Metrics, step_metrics
from opd.packing import Layout, lay_out, pack
from opd.seeds import generator_for
from opd.student import Statistics
from opd.teacher.base import Teacher

Grade = Callable[[Rollout], float]


@dataclass
class Run:
    """What a step works with; `train.py` builds it once."""

    recipe: Recipe
    trainer: Trainer
    teacher: Teacher
    ranks: Ranks
    layout: Layout
    grade: Grade | None
    clock: Clock


@dataclass(frozen=True)
class Outcome:
    """What a step leaves behind: metrics, and for the record its table and each term's weights."""

    metrics: Metrics
    table: TokenTable
    weights: list[Tensor]
    skipped: bool


def step(run: Run, rollouts: list[Rollout], index: int, lr: float) -> Outcome:
    """Train on the step's rollouts (the same list on every rank), and update the weights once."""
    recipe = run.recipe
    needs = needed(recipe, index)
    with run.clock("reward"):
        reward_B = rewards(run, rollouts)
    batches = micro_batches(run, rollouts)
    run.teacher.start(rollouts)
    one_pass = counts_before(recipe.loss, rollouts)
    table = token_table(rollouts, {}, reward_B)
    loss = torch.zeros((), dtype=torch.float64)
    if one_pass is None:
        with run.clock("score"):
            scores, columns = score(run, batches, needs)
            table = token_table(rollouts, gather(run.ranks, batches, columns, len(table)), reward_B)
        weights = plan(recipe, table, index)
        counts = [int((weight_C > 0).sum()) for weight_C in weights]
    else:
        scores, counts, columns, weights = None, one_pass, [], []
    with run.clock("train"):
        for k, batch in enumerate(batches):
            scored = scores[k] if scores else run.teacher.score(batch)
            choose = chooser(recipe, table, index, batch, counts, weights)
            part, statistics = run.trainer(batch, scored, needs=() if scores else needs, choose=choose)
            run.trainer.backward(part, last=k + 1 == len(batches))
            loss += part.detach().double().cpu()
            columns.append(statistics)
        update = run.trainer.update(lr)
    if one_pass is not None:
        table = token_table(rollouts, gather(run.ranks, batches, columns, len(table)), reward_B)
        weights = plan(recipe, table, index)
    metrics = step_metrics(table, weights, rollouts, cuts=recipe.metrics.quadrant_cuts)
    metrics |= {
        "loss": float(run.ranks.sum(loss)),
        "lr": lr,
        "grad_norm": update.grad_norm,
        "skipped": float(update.skipped),
    }
    return Outcome(metrics, table, weights, update.skipped)


def needed(recipe: Recipe, index: int) -> frozenset[str]:
    """The statistics of this step: what selectors need, and every `metrics.full_every` steps all there are."""
    return frozenset(STATISTICS) if index % recipe.metrics.full_every == 0 else recipe.statistics


def rewards(run: Run, rollouts: list[Rollout]) -> Tensor:
    """Each rollout's reward, [B], graded once and shared by all ranks; NaN where there is no verifier."""
    if run.grade is None:
        return torch.full((len(rollouts),), math.nan)
    mine = [run.grade(r) if i % run.ranks.count == run.ranks.index else 0.0 for i, r in enumerate(rollouts)]
    return run.ranks.sum(torch.tensor(mine))


def micro_batches(run: Run, rollouts: list[Rollout]) -> list[Batch]:
    """This rank's micro-batches, on its device; as many as on every other rank."""
    shares = pack(
        [len(r.token_ids) for r in rollouts],
        token_budget=run.recipe.token_budget,
        ranks=run.ranks.count,
        layout=run.layout,
    )
    return [lay_out(rollouts, indices, layout=run.layout).to(run.ranks.device) for indices in shares[run.ranks.index]]


def counts_before(terms: list[Term], rollouts: list[Rollout]) -> list[int] | None:
    """Each term's global count, if lengths alone decide all of them rollout by rollout; else None."""
    lengths = [r.length for r in rollouts]
    counts = [term.select.count_before(lengths) for term in terms]
    known = None not in counts and not any(term.objective.mixes_tokens for term in terms)
    return counts if known else None


def score(run: Run, batches: list[Batch], needs: frozenset[str]) -> tuple[list[TeacherScores], list[Statistics]]:
    """The teacher's scores and the statistics of every micro-batch, without gradient."""
    scores, columns = [], []
    with torch.no_grad():
        for batch in batches:
            scores.append(run.teacher.score(batch))
            columns.append(run.trainer(batch, scores[-1], needs=needs)[1])
    return scores, columns


def divergences(run: Run, rollouts: list[Rollout]) -> dict[str, float]:
    """Both KLs of the current student to the teacher on given text: mean per trained token, nats, and their number."""
    batches = micro_batches(run, rollouts)
    run.teacher.start(rollouts)
    _, columns = score(run, batches, frozenset({"reverse_kl", "forward_kl"}))
    tokens = sum(r.length for r in rollouts)
    table = gather(run.ranks, batches, columns, tokens)
    return {name: float(column.double().mean()) for name, column in table.items()} | {"tokens": tokens}


def gather(ranks: Ranks, batches: list[Batch], columns: list[Statistics], rows: int) -> Statistics:
    """The step's statistics in the table's order, the same on every rank: a sum over ranks of rows that each fills."""
    names = sorted(columns[0])
    if not names:
        return {}
    dtype = columns[0][names[0]].dtype
    table = torch.zeros(len(names), rows, dtype=dtype)
    for batch, statistics in zip(batches, columns, strict=True):
        for i, name in enumerate(names):
            table[i, batch.row_C.cpu()] = statistics[name].cpu()
    return dict(zip(names, ranks.sum(table), strict=True))


def plan(recipe: Recipe, table: TokenTable, index: int) -> list[Tensor]:
    """Each term's weight for every token of the table, [C]; draws are keyed by run seed, step, term and rollout."""
    return [
        term.select.weights(table, lambda rollout, t=t: generator_for("select", recipe.seed, index, t, rollout))
        for t, term in enumerate(recipe.loss)
    ]


def chooser(
    recipe: Recipe, table: TokenTable, index: int, batch: Batch, counts: list[int], weights: list[Tensor]
) -> Callable[[Statistics], list[Payment]]:
    """What the batch's tokens pay: the step's plan cut to its rows, or, in one pass, its rollouts' own choice."""
    rows = batch.row_C.cpu()

    def choose(statistics: Statistics) -> list[Payment]:
        own = [w[rows] for w in weights]
        if not weights:
            columns = {name: column.cpu() for name, column in statistics.items()}
            own = plan(recipe, table.rows(rows).with_statistics(columns), index)
        return [
            Payment(term.objective, weight_C.double().to(batch.row_C.device) * (term.weight / max(1, count)))
            for term, weight_C, count in zip(recipe.loss, own, counts, strict=True)
        ]

    return choose
