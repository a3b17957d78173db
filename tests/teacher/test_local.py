"""A teacher whose head is cut by vocabulary keeps its own rows, and gives the others' memory back."""

import gc
import weakref

import pytest
import torch

from opd.packing import lay_out
from opd.teacher.local import LocalTeacher
from opd.vocab_ranks import RankShard
from tests import cases

SHARD = RankShard(5, 20, cases.VOCABULARY, 15)


@pytest.mark.parametrize("biased", [False, True])
def test_only_the_ranks_own_rows_stay(biased: bool):
    model = cases.ending(2, never=5, seed=1, hidden=24) if biased else cases.model(2, hidden=24)
    whole = LocalTeacher(model).head
    expected, gone = whole.part(5, 20), weakref.ref(model.lm_head.weight)
    expected_weight, expected_bias = expected.weight_VH.clone(), biased and expected.bias_V.clone()
    del whole, expected
    teacher = LocalTeacher(model.requires_grad_(False), SHARD)
    gc.collect()
    assert gone() is None, "someone still holds the whole head"
    assert (teacher.head.start, teacher.head.vocabulary, teacher.vocabulary) == (5, 15, cases.VOCABULARY)
    assert torch.equal(teacher.head.weight_VH, expected_weight)
    assert not biased or torch.equal(teacher.head.bias_V, expected_bias)
    assert teacher.head.weight_VH.untyped_storage().nbytes() == expected_weight.nbytes
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_tied_teachers_embedding_stays_whole():
    """Its head is cut all the same, and then costs what it would have freed; `placement` refuses it."""
    batch = lay_out(cases.rollouts(), [0, 2], layout="rows")
    model = cases.model(2, hidden=24, tied=True).requires_grad_(False)
    whole = LocalTeacher(model).score(batch)
    part = LocalTeacher(model, SHARD).score(batch)
    assert torch.equal(part.hidden_NH, whole.hidden_NH)
    assert len(model.get_input_embeddings().weight) == cases.VOCABULARY
    assert (whole.vocabulary, part.vocabulary) == (cases.VOCABULARY, cases.VOCABULARY)
    assert torch.equal(part.head.weight_VH, whole.head.weight_VH[5:20])
