"""A head is read as its weight, with a plain low-rank adapter's; one that does more is refused."""

from functools import partial

import peft
import pytest
import torch
from torch import nn

from opd.batch import Prompt
from opd.errors import ModelError
from opd.packing import lay_out, piece_of
from opd.reading import backbone, plain_head, trained_states
from opd.student import Student
from opd.teacher.check import check_reading
from tests import cases


class Adapted(nn.Module):
    """A layer with a low-rank adapter beside it, as adapters' libraries wrap one: its weight is the layer's."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base
        kind = {"bias": False, "dtype": base.weight.dtype}
        self.down, self.up = nn.Linear(base.in_features, 2, **kind), nn.Linear(2, base.out_features, **kind)
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


def by_peft(**settings) -> nn.Module:
    config = peft.LoraConfig(target_modules=["lm_head"], **settings)
    return peft.get_peft_model(cases.model(1, hidden=16), config).base_model.model


MORE = {
    "by hand": by_hand,
    "dropout": partial(by_peft, lora_dropout=0.1),
    "DoRA": partial(by_peft, use_dora=True),
    "a bias": partial(by_peft, lora_bias=True),
}
"""Heads that add more to their product than a low-rank one, or only look like that."""


@pytest.mark.parametrize("kind", MORE)
def test_a_head_that_does_more_is_named_and_refused(kind: str):
    """Also a fresh one, which does nothing yet: nothing but its kind could tell."""
    prompts = [Prompt(i, list(range(3, 12))) for i in range(2)]
    for read in (
        lambda: Student(MORE[kind](), tokens=cases.VOCABULARY),
        lambda: check_reading(MORE[kind](), prompts, "rows", "student"),
    ):
        with pytest.raises(ModelError) as error:
            read()
        message = str(error.value)
        assert "'lm_head' is a " in message and "merge_and_unload" in message and "\n" not in message


def test_a_plain_adapter_on_the_head_is_read_with_it():
    model = by_peft()
    nn.init.normal_(model.lm_head.lora_B["default"].weight)
    check_reading(model, [Prompt(i, list(range(3, 12))) for i in range(2)], "rows", "student")
    assert plain_head(model) is model.lm_head


def test_an_adapter_below_the_head_is_read():
    model = peft.get_peft_model(cases.model(1, hidden=16), peft.LoraConfig(target_modules=["q_proj"])).base_model.model
    assert plain_head(model) is model.lm_head


def test_a_piece_is_no_sequence():
    """A model whose attention is not shared would read each piece as if nothing stood before it."""
    batch = lay_out(cases.rollouts(), [0, 2], layout="rows")
    with pytest.raises(ValueError, match="one of 2 pieces, and a model that reads one of 1"):
        trained_states(backbone(cases.model(1, hidden=16)), piece_of(batch, 0, 2))
