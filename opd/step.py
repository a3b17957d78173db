"""One optimizer step, from rollouts to new weights: choose, pack, score, plan, train. Read this second.

Every number that a token's weight depends on is known before any gradient, from one table that is the same on every
rank; so no result depends on micro-batches or on how many ranks share the work. Where each rollout decides for itself
(counts are arithmetic), scoring and training are one pass with the same gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from opd import schedules
from opd.batch import REFERENCE, Batch, Rollout, TokenTable, token_table
from opd.config import Recipe
from opd.distributed import Ranks, Trainer, device_type
from opd.head.cost import tile_bytes_of
from opd.head.pay import retained_rows
from opd.head.settings import HeadSettings
from opd.head.statistics import MEASURED, NORMALISERS, STATISTICS, reads_teacher, row_statistics
from opd.metrics import Clock, Metrics, rollout_metrics, token_metrics, training_share
from opd.objectives.base import ChosenObjective, DenseObjective
from opd.packing import Layout, lay_out, pack, piece_of
from opd.plan import (
    TermPlan,
    choice_is_lost,
    chooses_late,
    chosen_loss,
    chosen_rollouts,
    counts_before,
    pays,
    plan,
    with_ratio_advantage,
    with_reward_advantage,
)
from opd.student import Statistics, Student
from opd.teacher.base import Teacher, TeacherScores

Grade = Callable[[Rollout], float]


@dataclass
class Run:
    """What a step works with; `train.py` builds it once. A bare student does where nothing is trained.

    stop: ids that end a turn, of student and teacher. vocabulary: tokens that both heads know. reference: the student
    at start, where an objective needs it.
    """

    recipe: Recipe
    trainer: Trainer | Student
    teacher: Teacher
    ranks: Ranks
    layout: Layout
    grade: Grade | None
    clock: Clock
    stop: tuple[int, ...] = ()
    vocabulary: int | None = None
    reference: Teacher | None = None


@dataclass(frozen=True)
class StepResult:
    """What a step leaves behind: metrics, the rollouts that trained, their table and each term's weights."""

    metrics: Metrics
    rollouts: list[Rollout]
    table: TokenTable
    weights: list[Tensor]
    skipped: bool


@dataclass(frozen=True)
class Work:
    """One step's work: the recipe as it stands now, all rollouts, those that train and both tables, the micro-batches.

    everything: the table of all the step's rollouts, graded; what is said about rollouts is said about these.
    """

    recipe: Recipe
    index: int
    everyone: list[Rollout]
    everything: TokenTable
    rollouts: list[Rollout]
    table: TokenTable
    batches: list[Batch]
    settings: HeadSettings
    needs: frozenset[str]


def step(run: Run, recipe: Recipe, rollouts: list[Rollout], index: int) -> StepResult:
    """Train on the step's rollouts (the same list on every rank), and update the weights once.

    recipe: as `schedules.at` gives it for this step, every scheduled value a number.
    """
    work = prepare(run, recipe, rollouts, index)
    counts = counts_before(recipe, work.table.length_B.tolist())
    if counts is None:
        table, plans, loss = score_then_train(run, work)
    else:
        table, plans, loss = train_in_one_pass(run, work, counts)
    with run.clock("train"):
        update = run.trainer.update(recipe.optimizer.lr, idle=not any(p.count for p in plans))
    everything = work.everything
    if recipe.advantage == "log_ratio":
        everything = replace(everything, advantage_B=table.advantage_B)
    metrics = rollout_metrics(everything, work.everyone, stop=run.stop)
    trained, table, weights = what_trained(work, table, [p.weight_C for p in plans])
    metrics |= token_metrics(table, weights, cuts=recipe.metrics.quadrant_cuts)
    metrics |= {
        "loss": float(run.ranks.sum(loss)) + chosen_loss(recipe.loss, plans),
        "lr": recipe.optimizer.lr,
        "grad_norm": update.grad_norm,
        "skipped": float(update.skipped),
        "rollouts_kept": training_share(table, weights, of=len(rollouts)),
    }
    return StepResult(metrics, trained, table, weights, update.skipped)


def what_trained(
    work: Work, table: TokenTable, weights: list[Tensor]
) -> tuple[list[Rollout], TokenTable, list[Tensor]]:
    """The rollouts that train, their table and their weights: of a late choice, cut to what was chosen.

    A choice that is lost cuts nothing: the rollout that lost it may not be among the chosen, and is what one looks for.
    """
    if not chooses_late(work.recipe) or choice_is_lost(table):
        return work.rollouts, table, weights
    kept = chosen_rollouts(work.recipe, table, work.index)
    rows_c = torch.isin(table.rollout_C, kept).nonzero().squeeze(-1)
    rollouts = [work.rollouts[i] for i in kept.tolist()]
    chosen = token_table(rollouts, table.reward_B[kept], table.advantage_B[kept])
    return rollouts, chosen.with_statistics(table.rows(rows_c).statistics), [w[rows_c] for w in weights]


def prepare(run: Run, recipe: Recipe, rollouts: list[Rollout], index: int) -> Work:
    """Rewards, the rollouts that can be chosen by them, and micro-batches."""
    everyone = rollouts = [rollout.within(run.vocabulary) for rollout in rollouts]
    with run.clock("reward"):
        everything = table = with_reward_advantage(recipe, token_table(rollouts, rewards(run, rollouts)))
    if not chooses_late(recipe):
        kept = chosen_rollouts(recipe, table, index).tolist()
        rollouts = [rollouts[i] for i in kept]
        table = token_table(rollouts, table.reward_B[kept], table.advantage_B[kept])
    run.teacher.start(rollouts)
    return Work(
        recipe=recipe,
        index=index,
        everyone=everyone,
        everything=everything,
        rollouts=rollouts,
        table=table,
        batches=micro_batches(run, rollouts),
        settings=head_settings(recipe, run.stop),
        needs=needed_statistics(recipe, index),
    )


def score_then_train(run: Run, work: Work) -> tuple[TokenTable, list[TermPlan], Tensor]:
    """Statistics of every token, the plan on the whole table, then the gradient of the tokens that pay."""
    terms, loss = work.recipe.loss, torch.zeros((), dtype=torch.float64)
    with run.clock("score"):
        scores, columns = score(run, work.batches, work.needs, work.settings)
        table = work.table.with_statistics(gather(run.ranks, work.batches, columns, len(work.table)))
        table = with_ratio_advantage(work.recipe, table)
        plans = plan(work.recipe, table, work.index)
    with run.clock("train"):
        for number, (batch, scored, found) in enumerate(zip(work.batches, scores, columns, strict=True)):
            paying = pays(terms, plans, batch.row_C.cpu(), run.ranks.device)
            kept = retained_rows(paying, len(batch.row_C), run.ranks.device)
            paying = [pay.rows(kept) for pay in paying]
            known = {name: column[kept] for name, column in found.items()}
            batch, scored = batch.rows(kept.cpu()), scored.rows(kept.cpu()).to(run.ranks.device)
            part, _ = run.trainer(batch, scored, work.settings, pays_of=lambda _, paying=paying: paying, known=known)
            run.trainer.backward(part, last=number + 1 == len(work.batches))
            loss += part.detach().double().cpu()
            del part  # and with it the graph, which holds the states
    return table, plans, loss


def train_in_one_pass(run: Run, work: Work, counts: list[int]) -> tuple[TokenTable, list[TermPlan], Tensor]:
    """The same gradient in one pass: each rollout decides for itself, and every term's count is known beforehand."""
    terms, loss, columns = work.recipe.loss, torch.zeros((), dtype=torch.float64), []

    def planned(table: TokenTable) -> list[TermPlan]:
        return [replace(p, count=n) for p, n in zip(plan(work.recipe, table, work.index), counts, strict=True)]

    with run.clock("train"):
        for number, batch in enumerate(work.batches):
            rows_c = rows_of(work.table, batch)
            place_c = torch.searchsorted(rows_c, batch.row_C.cpu())

            def pays_of(statistics: Statistics, rows_c: Tensor = rows_c, place_c: Tensor = place_c) -> list:
                measured = whole_columns(run.ranks.sum_pieces, [place_c], [statistics], len(rows_c))
                table = work.table.rows(rows_c).with_statistics(measured)
                return pays(terms, planned(table), place_c, run.ranks.device)

            scored = run.teacher.score(batch)
            part, statistics = run.trainer(batch, scored, work.settings, needs=work.needs, pays_of=pays_of)
            run.trainer.backward(part, last=number + 1 == len(work.batches))
            loss += part.detach().double().cpu()
            del part  # and with it the graph, which holds the states
            columns.append(statistics)
        run.teacher.rest()
    table = work.table.with_statistics(gather(run.ranks, work.batches, columns, len(work.table)))
    return table, planned(table), loss


def rows_of(table: TokenTable, batch: Batch) -> Tensor:
    """Rows of the table that are of the batch's rollouts, ascending: its own, and those of others' pieces of it."""
    return torch.isin(table.rollout_C, torch.tensor(batch.rollouts, dtype=torch.long)).nonzero().squeeze(-1)


def needed_statistics(recipe: Recipe, index: int) -> frozenset[str]:
    """The statistics of this step: what selectors and objectives need; all there are every so many steps and last.

    Where the teacher's head is multiplied anyway, what the objectives sum comes with it: the loss then takes one sweep.
    Where a step computes statistics at all, those that watch stopping and the engine come with them, and in the second
    step anyway: it is the first that the engine samples with new weights.
    """
    asked = recipe.needs & {*STATISTICS, REFERENCE}
    if reads_teacher(asked):
        asked |= {*(term.objective.sums for term in recipe.loss if isinstance(term.objective, DenseObjective))} - {None}
    if index % recipe.metrics.full_every == 0 or index + 1 == recipe.steps:
        return asked | MEASURED
    watched = {"student_stop_mass", "trainer_logprob"} if asked or index == 1 else set()
    if reads_teacher(asked):
        watched.add("teacher_stop_mass")
    return asked | watched


def head_settings(recipe: Recipe, stop: tuple[int, ...]) -> HeadSettings:
    """What the head needs to know of a recipe at a step."""
    chosen = [term.objective for term in recipe.loss if isinstance(term.objective, ChosenObjective)]
    return HeadSettings(
        temperature=recipe.loss_temperature,
        sampler_temperature=recipe.rollout.temperature,
        candidates=max((objective.candidates for objective in chosen), default=0),
        stop=stop,
        merge_stop=recipe.stop_class,
        tile_bytes=tile_bytes_of(recipe.tile_mib, device_type()),
        precision=recipe.head_precision,
        kernels=recipe.head_kernels,
    )


def rewards(run: Run, rollouts: list[Rollout]) -> Tensor:
    """Each rollout's reward, [B], graded once and shared by all ranks; NaN where there is no verifier."""
    if run.grade is None:
        return torch.full((len(rollouts),), math.nan)
    mine = [run.grade(r) if i % run.ranks.count == run.ranks.index else 0.0 for i, r in enumerate(rollouts)]
    return run.ranks.sum(torch.tensor(mine))


def micro_batches(run: Run, rollouts: list[Rollout]) -> list[Batch]:
    """This rank's micro-batches, or its pieces of them, on its device; as many as on every other rank."""
    shares = pack(
        [len(r.token_ids) for r in rollouts],
        token_budget=run.recipe.token_budget,
        ranks=run.ranks.data_count,
        layout=run.layout,
    )
    whole = [lay_out(rollouts, indices, layout=run.layout) for indices in shares[run.ranks.data_index]]
    return [piece_of(batch, run.ranks.piece, run.ranks.pieces).to(run.ranks.device) for batch in whole]


def score(
    run: Run, batches: list[Batch], needs: frozenset[str], settings: HeadSettings
) -> tuple[list[TeacherScores], list[Statistics]]:
    """The teacher's scores (kept on the host) and the statistics of every micro-batch, without gradient.

    The teacher rests after it.
    """
    scores, columns = [], []
    with torch.no_grad():
        for batch in batches:
            scored = run.teacher.score(batch)
            statistics = run.trainer(batch, scored, settings, needs=needs - {REFERENCE})[1]
            if REFERENCE in needs:
                states = run.reference.score(batch)
                states = states.cut(min(states.vocabulary, scored.vocabulary))
                own = row_statistics(["student_logprob"], states, None, batch.token_id_C, settings)
                statistics |= {REFERENCE: own["student_logprob"]}
            scores.append(scored.to("cpu"))
            columns.append(statistics)
    run.teacher.rest()
    return scores, columns


def divergences(run: Run, rollouts: list[Rollout]) -> dict[str, float | int]:
    """Both KLs of the current student to the teacher on given text: mean per trained token, nats, and their number.

    At the last step's temperature, so that measurements compare. `*_stderr`: of that mean, clustered by rollout as in
    `eval.statistics.ratio`; 0 for one rollout.
    """
    names = frozenset({"reverse_kl", "forward_kl"})
    batches = micro_batches(run, rollouts)
    run.teacher.start(rollouts)
    last = schedules.at(run.recipe, run.recipe.steps - 1)
    _, columns = score(run, batches, names, replace(head_settings(last, run.stop), candidates=0))
    tokens = sum(r.length for r in rollouts)
    table = token_table(rollouts, torch.full((len(rollouts),), math.nan))
    found: dict[str, float | int] = {"tokens": tokens}
    for name, column in gather(run.ranks, batches, columns, tokens).items():
        mean = column.double().mean()
        sums_B = torch.zeros(len(rollouts), dtype=torch.float64).index_add(0, table.rollout_C, column.double() - mean)
        variance = sums_B.var() * len(rollouts) if len(rollouts) > 1 else torch.zeros(())  # the sums add up to 0
        found |= {name: float(mean), f"{name}_stderr": float(variance.sqrt() / max(1, tokens))}
    return found


def gather(ranks: Ranks, batches: list[Batch], columns: list[Statistics], rows: int) -> Statistics:
    """The step's statistics in the table's order, the same on every rank: a sum over ranks of rows that each fills."""
    return whole_columns(ranks.sum, [batch.row_C.cpu() for batch in batches], columns, rows)


def whole_columns(
    add_up: Callable[[Tensor], Tensor], places: list[Tensor], columns: list[Statistics], rows: int
) -> Statistics:
    """Columns of so many rows, of which each rank that adds up fills its own places; collective."""
    whole = {}
    for name in sorted(columns[0].keys() - set(NORMALISERS)):
        first = columns[0][name]
        column = torch.zeros(rows, *first.shape[1:], dtype=first.dtype)
        for place_c, statistics in zip(places, columns, strict=True):
            column[place_c] = statistics[name].cpu()
        whole[name] = add_up(column)
    return whole
