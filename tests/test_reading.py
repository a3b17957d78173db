"""A head is read as its weight alone; one that does more is refused."""

import pytest
import torch
from torch import nn

from opd.batch import Prompt
from opd.errors import ModelError
from opd.reading import plain_head
from opd.student import Student
from opd.teacher.check import check_reading
from tests import cases


class Adapted(nn.Module):
    """A layer with a low-rank adapter beside it, as adapters' libraries wrap one: its weight is the layer's."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base
        self.down, self.up = nn.Linear(base.in_features, 2), nn.Linear(2, base.out_features)
        nn.init.zeros_(self.up.weight)

    @property
    def weight(self) -> torch.Tensor:
        return self.base_layer.weight

    @property
    def bias(self) -> torch.Tensor | None:
        return self.base_layer.bias

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.base_layer(hidden) + self.up(self.down(hidden))


def by_hand() -> nn.Module:
    model = cases.model(1, hidden=16)
    model.lm_head = Adapted(model.lm_head)
    return model


def by_peft() -> nn.Module:
    peft = pytest.importorskip("peft")
    return peft.get_peft_model(cases.model(1, hidden=16), peft.LoraConfig(target_modules=["lm_head"])).base_model.model


@pytest.mark.parametrize("adapted", [by_hand, by_peft])
def test_an_adapter_on_the_head_is_named_and_refused(adapted):
    """Also a fresh one, which does nothing yet: nothing but its kind could tell."""
    prompts = [Prompt(i, list(range(3, 12))) for i in range(2)]
    for read in (
        lambda: Student(adapted(), tokens=cases.VOCABULARY),
        lambda: check_reading(adapted(), prompts, "rows", "student"),
    ):
        with pytest.raises(ModelError) as error:
            read()
        message = str(error.value)
        assert "'lm_head' is a " in message and "merge_and_unload" in message and "\n" not in message


def test_an_adapter_below_the_head_is_read():
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(cases.model(1, hidden=16), peft.LoraConfig(target_modules=["q_proj"])).base_model.model
    assert plain_head(model) is model.lm_head
