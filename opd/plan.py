"""What every token of a step pays, decided on its table before any gradient: rollouts, weights, counts, slopes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from opd.advantages import group_centred, group_normalised
from opd.batch import TokenTable
from opd.config import Recipe, Term
from opd.head.pay import ChosenPay, DensePay, Pay, RowsPay
from opd.objectives.base import Chosen, ChosenObjective, DenseObjective, RowsObjective
from opd.seeds import generator_for


@dataclass(frozen=True)
class TermPlan:
    """One term on the whole table: each token's weight, the count that the term divides by, and its kind's own part."""

    weight_C: Float[Tensor, " C"]
    count: int
    chosen: Chosen | None = None
    constant_C: Float[Tensor, " C"] | None = None


def with_reward_advantage(recipe: Recipe, table: TokenTable) -> TokenTable:
    """The table with group-normalised rewards as advantages, where the recipe asks for them."""
    if recipe.advantage != "reward":
        return table
    return replace(table, advantage_B=group_normalised(table.reward_B, table.group_B))


def with_ratio_advantage(recipe: Recipe, table: TokenTable) -> TokenTable:
    """The table with group-centred length-means of log p_T − log p_S as advantages, where the recipe asks for them.

    Rollouts without a token (failed ones) have none: their advantage is 0, and they are in no mean.
    """
    if recipe.advantage != "log_ratio":
        return table
    ratio_B = table.mean_by_rollout(table["teacher_logprob"] - table["student_logprob"])
    sampled_B, advantage_B = table.length_B > 0, torch.zeros_like(ratio_B)
    advantage_B[sampled_B] = group_centred(ratio_B[sampled_B], table.group_B[sampled_B])
    return replace(table, advantage_B=advantage_B)


def chosen_rollouts(recipe: Recipe, table: TokenTable, index: int) -> Int[Tensor, " B"]:
    """Indices of the step's rollouts that train, ascending."""
    return recipe.rollout_selection.choose(table, lambda: generator_for("rollouts", recipe.seed, index))


def chooses_late(recipe: Recipe) -> bool:
    """Whether rollouts are chosen once the teacher has scored them: an advantage is of all rollouts of a prompt."""
    return recipe.advantage == "log_ratio" and recipe.rollout_selection.type != "all"


def choice_is_lost(table: TokenTable) -> bool:
    """Whether a rollout's advantage is not a number: no choice by it can be trusted, so the step must be skipped."""
    return bool(table.advantage_B[table.rollout_C].isnan().any())


def counts_before(recipe: Recipe, lengths: list[int]) -> list[int] | None:
    """Each term's global count, if lengths alone decide all of them rollout by rollout; else None."""
    counts = [term.select.count_before(lengths) for term in recipe.loss]
    dense = all(isinstance(term.objective, DenseObjective) for term in recipe.loss)
    return counts if dense and None not in counts and recipe.advantage != "log_ratio" else None


def plan(recipe: Recipe, table: TokenTable, index: int) -> list[TermPlan]:
    """Each term's plan; draws are keyed by run seed, step, the first term of that selector, and rollout.

    So terms of one selection train the same tokens, a random one too: its control keeps no more of them than it does.
    """
    if not chooses_late(recipe):
        return [_of_term(recipe, table, index, number) for number in range(len(recipe.loss))]
    rows_c = torch.isin(table.rollout_C, chosen_rollouts(recipe, table, index)).nonzero().squeeze(-1)
    kept = table.rows(rows_c)
    plans = [_of_term(recipe, kept, index, number) for number in range(len(recipe.loss))]
    if choice_is_lost(table):
        plans = [_lost(p) for p in plans]
    return [_spread(p, rows_c, len(table)) for p in plans]


def pays(terms: list[Term], plans: list[TermPlan], rows_c: Int[Tensor, " c"], device: torch.device) -> list[Pay]:
    """What those rows of the table pay in each term."""
    return [_pay(term, p, rows_c, device) for term, p in zip(terms, plans, strict=True)]


def chosen_loss(terms: list[Term], plans: list[TermPlan]) -> float:
    """The part of the loss that is known from the table: the chosen objectives' values."""
    pairs = zip(terms, plans, strict=True)
    return sum((t.weight * float(p.chosen.value) for t, p in pairs if p.chosen is not None), start=0.0)


def _of_term(recipe: Recipe, table: TokenTable, index: int, number: int) -> TermPlan:
    term = recipe.loss[number]
    key = next(first for first, other in enumerate(recipe.loss) if other.select == term.select)
    weight_C = term.select.weights(table, lambda rollout: generator_for("select", recipe.seed, index, key, rollout))
    count = int((weight_C > 0).sum())
    if isinstance(term.objective, ChosenObjective):
        return TermPlan(weight_C, count, chosen=term.objective.choose(table, weight_C))
    if isinstance(term.objective, RowsObjective):
        return TermPlan(weight_C, count, constant_C=term.objective.constants(table, weight_C))
    return TermPlan(weight_C, count)


def _lost(p: TermPlan) -> TermPlan:
    """The same with NaN in the place of all that is paid."""
    chosen = p.chosen and replace(p.chosen, value=p.chosen.value * torch.nan, slope_CK=p.chosen.slope_CK * torch.nan)
    return replace(p, weight_C=torch.full_like(p.weight_C, torch.nan), chosen=chosen)


def _spread(p: TermPlan, rows_c: Tensor, total: int) -> TermPlan:
    """A plan on some rows of the table as one on all of them; the others pay nothing."""

    def spread(values: Tensor) -> Tensor:
        return values.new_zeros(total, *values.shape[1:]).index_copy(0, rows_c, values)

    chosen = p.chosen and Chosen(p.chosen.value, spread(p.chosen.token_id_CK), spread(p.chosen.slope_CK))
    return TermPlan(spread(p.weight_C), p.count, chosen, None if p.constant_C is None else spread(p.constant_C))


def _pay(term: Term, p: TermPlan, rows_c: Tensor, device: torch.device) -> Pay:
    if p.chosen is not None:
        ids_cK, slope_cK = p.chosen.token_id_CK[rows_c], p.chosen.slope_CK[rows_c] * term.weight
        return ChosenPay(ids_cK.to(device), slope_cK.to(device))
    weight_c = (p.weight_C[rows_c].double() * (term.weight / max(1, p.count))).to(device)
    if p.constant_C is not None:
        return RowsPay(term.objective, weight_c, p.constant_C[rows_c].to(device))
    return DensePay(term.objective, weight_c)
