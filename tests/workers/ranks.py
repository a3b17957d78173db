"""Run by tests/test_distributed.py under `accelerate launch`: real DeepSpeed ranks on the shared cases.

    python -m tests.workers.ranks gradients|steps|several|nonfinite PRECISION FOLDER SHAPE…

SHAPE: tied, untied, checkpointed, adapted (with adapters on every layer, untied on the head too), by_vocabulary,
pieces (some cases once more, named pieces-…, by two ranks that share every sequence, a long one among them).

Rank 0 leaves its findings as FOLDER/<case>.pt, and `steps` the exported student beside them.
"""

from __future__ import annotations

import sys
from pathlib import Path

import deepspeed
import torch
from deepspeed.utils import safe_get_full_grad, safe_get_full_optimizer_state

from opd import distributed
from opd.batch import Rollout
from opd.distributed import Ranks, Trainer, Update, gathered
from opd.models import DTYPES
from opd.parts import optimizer_for
from opd.step import Run, StepResult
from opd.ulysses import share_attention
from opd.vocab_ranks import RankShard
from recipes.quickstart.make_models import character_tokenizer
from tests import cases
from tests.workers.pieces import LONG, long_rollouts

OPTIMIZER = {"lr": 1e-2, "betas": [0.8, 0.95], "schedule": "constant", "weight_decay": 0.5, "max_grad_norm": 0.05}


BF16 = ("all", "soft_or_batch", "three_terms", "sampled", "uskd")
"""Cases of each kind that bf16 leaves comparable: it rounds candidates of Plackett–Luce into another order."""


def start(precision: str, *, max_grad_norm: float, tied: bool, checkpointed: bool = False) -> tuple[Trainer, Ranks]:
    if precision == "fp64":  # DeepSpeed reduces float64 as well as any dtype, and only its list of them lacks it
        deepspeed.accelerator.get_accelerator().supported_dtypes = lambda: [torch.float64]
    accelerator = distributed.start(precision, max_grad_norm=max_grad_norm, trackers=[])
    if "adapted" in sys.argv:
        targets = ["all-linear"] if tied else ["all-linear", "lm_head"]
        module = cases.adapted(targets, tied=tied, dtype=DTYPES[precision])
    else:
        module = cases.student(cases.recipe(), tied=tied, dtype=DTYPES[precision])
    if checkpointed:
        module.model.gradient_checkpointing_enable({"use_reentrant": False})
    optimizer = optimizer_for(module, cases.recipe(optimizer=OPTIMIZER))
    return Trainer(accelerator, module, optimizer), Ranks(accelerator.device)


def gradients(trainer: Trainer, ranks: Ranks, precision: str, folder: Path) -> None:
    """Loss and full gradient of every case, and whether the head's weight is whole on a rank."""
    head = trainer.student.head.weight
    whole = head.numel() == cases.VOCABULARY * 16
    names, teacher = BF16 if precision == "bf16" else cases.LOSSES, None
    if "by_vocabulary" in sys.argv:
        names = cases.STREAMED
        teacher = cases.frozen(DTYPES[precision], RankShard.of_rank(cases.VOCABULARY))
    if "adapted" in sys.argv:
        names = ("soft_or_batch", "tsdkd")
    work = [(name, budget, cases.rollouts()) for name in names for budget in (40, 4096)]
    work += [("soft_or_batch", 1, cases.rollouts()[2:3])]  # named budget 1: one rollout, so other ranks have none
    jobs = [("", ranks, *job) for job in work]
    if "pieces" in sys.argv:
        shared, own = Ranks(ranks.device, 2), cases.rollouts()
        work = [("soft_or_batch", 40, own), ("soft_or_rollout", 4096, own), ("soft_or_batch", LONG, long_rollouts())]
        jobs += [("pieces-", shared, *job) for job in work]
    for prefix, ranks, name, budget, rollouts in jobs:
        chosen = cases.recipe(name, token_budget=max(40, budget))
        trainer.student.layer_share = chosen.layer_share
        run = cases.run(chosen, trainer=trainer, tied=True, dtype=DTYPES[precision], ranks=ranks, teacher=teacher)
        if ranks.pieces > 1:
            for read in (trainer.student.model, run.teacher.model, run.reference.model):
                share_attention(read, ranks.sequence_group)
        outcome, grads = gradient(run, rollouts)
        found = {
            "loss": outcome.metrics["loss"],
            "grads": grads,
            "head_is_whole": whole,
            "teacher_rows": ranks.gather_objects(len(run.teacher.model.lm_head.weight)),
            "weights": outcome.weights,
            "rollouts": [r.token_ids for r in outcome.rollouts],
        }
        if ranks.is_main:
            torch.save(found, folder / f"{prefix}{name}-{budget}.pt")


def gradient(run: Run, rollouts: list[Rollout]) -> tuple[StepResult, dict[str, torch.Tensor]]:
    """A step in which no weight moves, and the full gradient of all that trains."""
    trainer, grads = run.trainer, {}

    def update(lr: float, *, idle: bool = False) -> Update:
        for key, parameter in trained(trainer).items():
            grads[key] = safe_get_full_grad(parameter).clone()
        trainer._discard_gradient()
        return Update(skipped=False, grad_norm=0.0)

    trainer.update = update
    return cases.taken(run, rollouts), grads


def steps(trainer: Trainer, ranks: Ranks, precision: str, folder: Path) -> None:
    """Steps without a token, idle and then as if not, that weights decay; one whose gradient is clipped; the export."""
    chosen = cases.recipe("soft_or_batch", token_budget=40, optimizer=OPTIMIZER)
    run = cases.run(chosen, trainer=trainer, dtype=DTYPES[precision], ranks=ranks)
    nothing = [r for r in cases.rollouts() if r.length == 0]
    found = {"start": weights(trainer), "skipped": cases.taken(run, nothing).skipped, "idle": weights(trainer)}
    trainer.update = lambda lr, *, idle: Trainer.update(trainer, lr)
    cases.taken(run, nothing)
    del trainer.update
    found["decayed"] = weights(trainer)
    found["grad_norm"] = cases.taken(run, cases.rollouts()).metrics["grad_norm"]
    found["end"] = weights(trainer)
    # DeepSpeed links the optimizer's state while it steps its first group, when the second group has none yet.
    if trainer.zero_stage in (1, 2):
        trainer.engine.optimizer._hp_optimizer_states_linked = False
        trainer.engine.optimizer._lazy_init_hp_params_optimizer_state()
    # The first step left the average at 0, so after the second it is (1 - β₁) · gradient.
    beta = chosen.optimizer.betas[0]
    found["grads"] = {
        name: safe_get_full_optimizer_state(p, "exp_avg") / (1 - beta) for name, p in trained(trainer).items()
    }
    trainer.student.export(folder / "model", character_tokenizer(), writes=ranks.is_main)
    if ranks.is_main:
        torch.save(found, folder / "steps.pt")


def several(trainer: Trainer, ranks: Ranks, precision: str, folder: Path) -> None:
    """Four steps on other rollouts each, at a rate that changes and averages that are not the default."""
    chosen = cases.recipe("soft_or_batch", token_budget=40, optimizer=OPTIMIZER | {"lr": 1e-3, "schedule": "linear"})
    run = cases.run(chosen, trainer=trainer, dtype=DTYPES[precision], ranks=ranks)
    found = {index: (cases.taken(run, cases.rollouts(index), index).metrics, weights(trainer)) for index in range(4)}
    found["optimizer"] = type(trainer.engine.basic_optimizer).__name__
    if ranks.is_main:
        torch.save(found, folder / "several.pt")


def nonfinite(trainer: Trainer, ranks: Ranks, precision: str, folder: Path) -> None:
    """A step that only rank 1's (or the only rank's) micro-batch poisons, between two sound ones."""
    run = cases.run(
        cases.recipe("all", token_budget=64, optimizer={"lr": 1e-3, "schedule": "constant"}),
        trainer=trainer,
        dtype=DTYPES[precision],
        ranks=ranks,
    )
    found = {"start": weights(trainer)}
    for index, kind in enumerate(["sound", "loss", "gradient", "sound", "sound"]):
        if index == 1:
            trainer.save(folder / "after-0")
        if index == 4:  # the last step once more, without the poisoned ones before it
            trainer.load(folder / "after-0")
        poison(trainer, kind if ranks.index == ranks.count - 1 else "sound")
        outcome = cases.taken(run, cases.rollouts(min(index, 3)), min(index, 3))
        found[index] = {"skipped": outcome.skipped, "weights": weights(trainer)}
        if index == 0:
            found["updates"] = {int(state["step"]) for state in trainer.engine.basic_optimizer.state.values()}
    if ranks.is_main:
        torch.save(found, folder / "nonfinite.pt")


def poison(trainer: Trainer, kind: str) -> None:
    """From now on this rank's loss, or only its gradient, is not a number."""

    def call(*args, **kwargs):
        loss, statistics = trainer.engine(*args, **kwargs)
        if loss is not None and kind == "loss":
            loss = loss * torch.tensor(float("nan"))
        if loss is not None and kind == "gradient":
            loss = loss + SilentPoison.apply(loss)
        return loss, statistics

    Trainer.__call__ = lambda self, *args, **kwargs: call(*args, **kwargs)


class SilentPoison(torch.autograd.Function):
    """0 forward, NaN backward."""

    @staticmethod
    def forward(ctx, x):
        return torch.zeros_like(x)

    @staticmethod
    def backward(ctx, grad):
        return grad * float("nan")


def trained(trainer: Trainer) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in trainer.student.model.named_parameters() if p.requires_grad}


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    with gathered(trainer.student.parameters()):
        return {name: p.detach().clone() for name, p in trainer.student.model.named_parameters()}


if __name__ == "__main__":
    task, precision, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    limit = OPTIMIZER["max_grad_norm"] if task == "steps" else 1.0
    shape = {"tied": "untied" not in sys.argv, "checkpointed": "checkpointed" in sys.argv}
    trainer, ranks = start(precision, max_grad_norm=limit, **shape)
    {"gradients": gradients, "nonfinite": nonfinite, "steps": steps}[task](trainer, ranks, precision, folder)
    distributed.leave(ranks)
