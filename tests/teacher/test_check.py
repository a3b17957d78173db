"""What is checked of models before step 1, and that each check can fail."""

from dataclasses import replace

import pytest
import torch

from opd.batch import Prompt
from opd.errors import ModelError
from opd.packing import lay_out
from opd.student import Student
from opd.teacher import check
from tests import cases

PROMPTS = [Prompt(i, list(range(3 + i, 12 + 2 * i))) for i in range(4)]


@pytest.mark.parametrize("layout", ["rows", "packed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_known_architecture_is_read_as_it_is(layout, dtype):
    check.check_reading(cases.model(1, hidden=16, dtype=dtype), PROMPTS, layout, "student")


def shifted(rollouts, indices, *, layout):
    batch = lay_out(rollouts, indices, layout=layout)
    return replace(batch, source_C=batch.source_C + 1)


def misplaced(rollouts, indices, *, layout):
    batch = lay_out(rollouts, indices, layout=layout)
    return replace(batch, position_SW=batch.position_SW * 2)


@pytest.mark.parametrize("wrong", [shifted, misplaced])
def test_a_wrong_shift_or_position_is_found(wrong, monkeypatch):
    monkeypatch.setattr(check, "lay_out", wrong)
    with pytest.raises(ModelError, match="not understood"):
        check.check_reading(cases.model(1, hidden=16), PROMPTS, "rows", "student")


def test_a_head_that_does_more_than_we_know_is_found(monkeypatch):
    model = cases.model(1, hidden=16)
    plain = model.lm_head.forward
    monkeypatch.setattr(model.lm_head, "forward", lambda hidden: 3 * plain(hidden))
    with pytest.raises(ModelError, match="not understood"):
        check.check_reading(model, PROMPTS, "rows", "student")


def test_the_student_as_its_own_teacher_pays_nothing():
    student = Student(cases.model(1, hidden=16, dtype=torch.bfloat16), tokens=cases.VOCABULARY)
    assert check.self_distillation_loss(student, PROMPTS, "rows") < 1e-6
    check.check_self_distillation(student, PROMPTS, "rows")
