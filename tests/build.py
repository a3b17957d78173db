"""Small inputs for the mathematics: hidden states with a known distribution, token tables, whole losses of a recipe."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from opd.batch import Batch, Rollout, TokenTable
from opd.config import Recipe, Term
from opd.distributed import Ranks, Trainer, Update
from opd.head.loss import head_loss
from opd.head.pay import Pay
from opd.head.settings import HeadSettings
from opd.head.shard import VocabShard
from opd.head.statistics import MEASURED, STATISTICS, row_statistics, with_normalisers
from opd.head.tile import TopScores
from opd.head.weights import HeadWeights, HiddenStates
from opd.metrics import Clock
from opd.objectives.base import Objective
from opd.plan import TermPlan, chosen_loss, pays, plan, with_ratio_advantage
from opd.recipe_text import parse_recipe
from opd.seeds import generator_for
from opd.selection.base import TokenSelector
from opd.step import Run, StepResult, head_settings, step
from opd.teacher.base import TeacherScores

TILE = 1 << 20
torch.set_num_threads(1)  # tensors here are tiny: a second thread only waits, 10 ms an operator on a busy machine


def states(logits_NV: Any, dtype: torch.dtype = torch.float64) -> HiddenStates:
    """Hidden states whose logits are the given ones: an identity for a head. A column that is all −inf is its bias."""
    hidden_NV = torch.as_tensor(logits_NV, dtype=dtype)
    head, never_V = HeadWeights(torch.eye(hidden_NV.shape[1], dtype=dtype)), (hidden_NV == -torch.inf).all(0)
    if not len(hidden_NV) or not never_V.any():
        return HiddenStates(hidden_NV, head)
    bias_V = torch.zeros(len(never_V), dtype=dtype).masked_fill(never_V, -torch.inf)
    return HiddenStates(hidden_NV.masked_fill(never_V, 0), replace(head, bias_V=bias_V))


def random_states(rows: int, hidden: int, vocabulary: int, *, seed: int, **head: Any) -> HiddenStates:
    """Random float64 states and head, with a bias; `head` holds softcap and scale."""
    generator = torch.Generator().manual_seed(seed)
    hidden_NH, weight_VH, bias_V = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in ((rows, hidden), (vocabulary, hidden), (vocabulary,))
    )
    return HiddenStates(hidden_NH, HeadWeights(weight_VH, bias_V, **head))


def statistics(
    student: HiddenStates, teacher: HiddenStates | None, needs: Iterable[str] = MEASURED, **settings: Any
) -> dict[str, Tensor]:
    """row_statistics with everything else at its plainest; `settings` are HeadSettings', and token_id_N."""
    token_id_N = settings.pop("token_id_N", torch.zeros(len(student), dtype=torch.long))
    plain = {"tile_bytes": TILE, "candidates": 3}
    return row_statistics(needs, student, teacher, token_id_N, HeadSettings(**plain | settings))


def token_table(
    lengths: list[int], columns: dict[str, Tensor], rollout_ids: list[int] | None = None, **given: Tensor | None
) -> TokenTable:
    """A table of rollouts of those lengths; `rollout_ids` renames them (others of the step are then absent).

    `given` are columns of the table that are no statistics.
    """
    rollout_ids = list(range(len(lengths))) if rollout_ids is None else rollout_ids
    step = max(rollout_ids, default=-1) + 1
    length_B = torch.zeros(step, dtype=torch.long)
    length_B[rollout_ids] = torch.tensor(lengths, dtype=torch.long)
    plain = TokenTable(
        rollout_C=torch.repeat_interleave(torch.tensor(rollout_ids, dtype=torch.long), torch.tensor(lengths).long()),
        position_C=torch.cat([torch.arange(n) for n in [0, *lengths]]),
        token_id_C=torch.zeros(sum(lengths), dtype=torch.long),
        sampler_logprob_C=torch.zeros(sum(lengths)),
        statistics=columns,
        length_B=length_B,
        reward_B=torch.zeros(step),
        advantage_B=torch.linspace(-1, 1, step, dtype=torch.float64) if step else torch.zeros(0, dtype=torch.float64),
        group_B=torch.zeros(step, dtype=torch.long),
    )
    return replace(plain, **{name: column for name, column in given.items() if column is not None})


def random_table(lengths: list[int], seed: int = 0) -> TokenTable:
    """A table with every statistic, float64 and all different; log-probabilities are negative, the rest positive."""
    generator = torch.Generator().manual_seed(seed)
    columns = {name: torch.rand(sum(lengths), generator=generator, dtype=torch.float64) for name in MEASURED}
    return token_table(lengths, {name: -c if name.endswith("logprob") else c for name, c in columns.items()})


def draw(rollout: int) -> torch.Generator:
    """The generator of a rollout's draws."""
    return generator_for("test", rollout)


class Given(TokenSelector):
    """Weights that a test writes by hand, in a column of the table."""

    type: Literal["given"] = "given"

    def weights(self, table: TokenTable, draw: Any) -> Tensor:
        return table["weight"]


PLAIN = {
    "student": {"model": "student"},
    "teacher": {"type": "local", "model": "teacher"},
    "prompts": {"path": "none.jsonl", "max_tokens": 12, "answer": "answer"},
    "rollout": {"max_new_tokens": 20, "type": "transformers", "samples_per_prompt": 4},
    "loss": [{"objective": {"type": "reverse_kl"}}],
    "stop_class": False,
    "token_budget": 4096,
    "precision": "fp32",
}


def recipe(*terms: dict[str, Any], **more: Any) -> Recipe:
    """A recipe of those terms, with the rest at its plainest; `more` are its other keys."""
    return parse_recipe(PLAIN | ({"loss": list(terms)} if terms else {}) | more)


def paying(*objectives: Objective, **more: Any) -> Recipe:
    """A recipe whose terms pay these objectives on the tokens that the table's column `weight` names."""
    terms = [Term.model_construct(select=Given(), objective=objective, weight=1.0) for objective in objectives]
    return BASE.model_copy(update={"loss": terms, **more})


BASE = recipe()


@dataclass(frozen=True)
class Models:
    """What the head reads: student, teacher, and where an objective asks for them a middle layer and a reference."""

    student: HiddenStates
    teacher: HiddenStates | TopScores | None = None
    weak_NH: Tensor | None = None
    reference: HiddenStates | None = None


@dataclass(frozen=True)
class Taken:
    """A loss, its gradient by name (hidden, weight, bias, weak), and how it came about."""

    loss: Tensor
    grads: dict[str, Tensor]
    plans: list[TermPlan]
    table: TokenTable


def measured(recipe: Recipe, table: TokenTable, models: Models, settings: HeadSettings) -> TokenTable:
    """The table with what the recipe needs; columns that it has already stay."""
    ids_C, needs = table.token_id_C, (recipe.needs & set(STATISTICS)) - table.statistics.keys()
    columns = row_statistics(needs, models.student, models.teacher, ids_C, settings) if needs else {}
    if models.reference is not None:
        own = row_statistics(["student_logprob"], models.reference, None, ids_C, settings)
        columns |= {"reference_logprob": own["student_logprob"]}
    return with_ratio_advantage(recipe, table.with_statistics(columns | table.statistics))


def taken(recipe: Recipe, table: TokenTable, models: Models, *, stop: tuple[int, ...] = (), **settings: Any) -> Taken:
    """Loss and gradient of a recipe's terms on one table, by `opd.plan` and the head; nothing is computed here."""
    head = replace(head_settings(recipe, stop), **settings)
    table = measured(recipe, table, models, head)
    plans = plan(recipe, table, 0)
    paid = pays(recipe.loss, plans, torch.arange(len(table)), torch.device("cpu"))
    loss, grads = gradient(models, paid, table.token_id_C, head)
    return Taken(loss + chosen_loss(recipe.loss, plans), grads, plans, table)


def leaves(student: HiddenStates) -> tuple[dict[str, Tensor], HiddenStates]:
    """Copies that take a gradient of what a student has (hidden, weight, bias), and the student made of them."""
    head = student.head
    parts = {"hidden": student.hidden_NH, "weight": head.weight_VH, "bias": head.bias_V}
    made = {name: x.detach().clone().requires_grad_() for name, x in parts.items() if x is not None}
    return made, HiddenStates(made["hidden"], replace(head, weight_VH=made["weight"], bias_V=made.get("bias")))


def gradient(
    models: Models,
    paid: list[Pay],
    token_id_N: Tensor,
    settings: HeadSettings,
    known: dict[str, Tensor] | None = None,
    shard: VocabShard | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """head_loss, and its gradient with respect to everything that there is: hidden, weight, bias, weak."""
    parts, own = leaves(models.student)
    if models.weak_NH is not None:
        parts["weak"] = models.weak_NH.detach().clone().requires_grad_()
    loss = head_loss(own, models.teacher, paid, token_id_N, settings, parts.get("weak"), known, shard)
    return loss.detach(), dict(zip(parts, torch.autograd.grad(loss, list(parts.values())), strict=True))


class GivenLogits(Trainer):
    """Trainer and teacher of a step whose models are two matrices of logits; a rollout names its rows of them."""

    def __init__(self, student_TV: Tensor, teacher_TV: Tensor) -> None:
        self.student_TV, self.teacher_TV = student_TV.clone().requires_grad_(), teacher_TV

    def start(self, rollouts: list[Rollout]) -> None:
        self.rows_C = torch.tensor([row for r in rollouts for row in r.extra["rows"]], dtype=torch.long)

    def score(self, batch: Batch) -> TeacherScores:
        its = states(self.teacher_TV[self.rows_C[batch.row_C]], self.teacher_TV.dtype)
        return TeacherScores(its.hidden_NH, its.head)

    def rest(self) -> None:
        pass

    def __call__(
        self,
        batch: Batch,
        scored: TeacherScores,
        settings: HeadSettings,
        *,
        needs: Any = (),
        pays_of: Any = None,
        known: Any = None,
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        student = states(self.student_TV[self.rows_C[batch.row_C]], self.student_TV.dtype)
        found = row_statistics(with_normalisers(needs), student, scored, batch.token_id_C, settings)
        known = found | (known or {})
        return pays_of and head_loss(student, scored, pays_of(found), batch.token_id_C, settings, known=known), found

    def backward(self, loss: Tensor, *, last: bool) -> None:
        loss.backward()

    def update(self, lr: float, *, idle: bool = False) -> Update:
        return Update(skipped=False, grad_norm=0.0)

    def step(self, recipe: Recipe, rollouts: list[Rollout]) -> StepResult:
        """One step of `opd.step`; rewards are what the rollouts carry as `reward`."""
        grade = lambda rollout: rollout.extra["reward"]  # noqa: E731
        return step(Run(recipe, self, self, Ranks(), "rows", grade, Clock()), recipe, rollouts, 0)

    @property
    def grad_TV(self) -> Tensor:
        """The step's gradient; 0 where nothing was paid."""
        return torch.zeros_like(self.student_TV) if self.student_TV.grad is None else self.student_TV.grad


def rollouts_of(lengths: list[int], *, mask: list[int] | None = None, groups: Any = None, rewards: Any = None) -> list:
    """Rollouts that lie one after another on the rows of such logits; a row whose mask is 0 is not trained."""
    made, start = [], 0
    for number, length in enumerate(lengths):
        rows = range(start, start := start + length)
        trained = [mask is None or mask[row] > 0 for row in rows]
        extra = {"rows": [row for row, is_trained in zip(rows, trained, strict=True) if is_trained]}
        extra |= {"reward": 0.0 if rewards is None else float(rewards[number])}
        count, group = len(extra["rows"]), 0 if groups is None else groups[number]
        made.append(Rollout([0] * (1 + length), [False, *trained], [0.0] * count, [0] * count, "stop", group, extra))
    return made
