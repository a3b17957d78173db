"""A teacher that is in main memory between uses: here its device is a CPU too, and each move a copy that is seen."""

import gc
import weakref

import pytest
import torch

from opd.packing import lay_out
from opd.teacher.local import LocalTeacher
from opd.teacher.offloaded import OffloadedTeacher
from opd.vocab_ranks import RankShard
from tests import cases

CPU = torch.device("cpu")
SHARDS = [None, RankShard(5, 20, cases.VOCABULARY, 15)]
BATCH = lay_out(cases.rollouts(), [0, 2], layout="rows")


def made(shard: RankShard | None = None) -> OffloadedTeacher:
    return OffloadedTeacher(cases.model(2, hidden=24).requires_grad_(False), CPU, shard)


def places(teacher: LocalTeacher) -> dict[str, int]:
    return {name: parameter.data_ptr() for name, parameter in teacher.model.named_parameters()}


@pytest.mark.parametrize("shard", SHARDS, ids=["whole", "own rows"])
def test_it_says_what_a_teacher_does_that_stays(shard: RankShard | None):
    teacher, staying = made(shard), cases.frozen(shard=shard)
    for _ in range(2):
        moved, stayed = teacher.score(BATCH), staying.score(BATCH)
        assert torch.equal(moved.hidden_NH, stayed.hidden_NH)
        assert torch.equal(moved.head.weight_VH, stayed.head.weight_VH) and moved.head.start == stayed.head.start
        teacher.rest()


@pytest.mark.parametrize("shard", SHARDS, ids=["whole", "own rows"])
def test_every_weight_comes_once_and_goes_with_the_rest(shard: RankShard | None):
    teacher = made(shard)
    kept = places(teacher)
    teacher.score(BATCH)
    here = places(teacher)
    assert all(here[name] != place for name, place in kept.items())
    teacher.score(BATCH)
    assert places(teacher) == here, "a second batch moves nothing"
    teacher.rest()
    assert places(teacher) == kept


def test_scores_that_are_out_hold_the_head_and_nothing_else():
    teacher = made()
    scored = teacher.score(BATCH)
    model = teacher.model
    head, layer = (weakref.ref(m.weight.untyped_storage()) for m in (model.lm_head, model.model.layers[0].mlp.up_proj))
    teacher.rest()
    gc.collect()
    assert head() is not None and layer() is None
    assert torch.equal(scored.head.weight_VH, model.lm_head.weight)
    del scored
    gc.collect()
    assert head() is None


class Watching(cases.PlainTrainer):
    """Notes whether the teacher is on the device when a gradient is added up, and when weights change."""

    teacher: OffloadedTeacher

    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        self.at_backward = self.teacher.is_here
        super().backward(loss, last=last)

    def update(self, lr: float, *, idle: bool = False) -> cases.Update:
        self.at_update = self.teacher.is_here
        return super().update(lr)


@pytest.mark.parametrize(("name", "passes"), [("soft_or_batch", 2), ("all", 1)])
def test_a_step_has_it_here_only_while_it_scores(name: str, passes: int):
    chosen = cases.recipe(name, token_budget=40)
    losses, grads = [], []
    for teacher in (cases.frozen(), made()):
        trainer = Watching(cases.student(chosen))
        trainer.teacher = teacher if isinstance(teacher, OffloadedTeacher) else made()
        run = cases.run(chosen, trainer=trainer, teacher=teacher)
        losses.append(cases.taken(run, cases.rollouts()).metrics["loss"])
        grads.append(cases.gradients(trainer.student))
    assert trainer.at_backward is (passes == 1), "one pass scores on its way"
    assert not trainer.at_update and not teacher.is_here
    assert losses[0] == losses[1]
    assert all(torch.equal(grad, grads[1][key]) for key, grad in grads[0].items())
