"""A teacher that two ranks hold in parts says and teaches what a whole one does, to the last bit."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests import cases

ELEMENTS = {tied: sum(p.numel() for p in cases.model(2, hidden=24, tied=tied).parameters()) for tied in (False, True)}
KINDS = ["whole", "tied", "by_vocabulary", "offloaded"]
"""Of the head; the last is by vocabulary too, and all parts wait in main memory."""
HEAD = cases.VOCABULARY * 24


@pytest.fixture(scope="module", params=["zero0", "zero3-offload"])
def found(request: pytest.FixtureRequest, large: dict[str, Path]) -> list[dict[Any, Any]]:
    """What each of two ranks saw, with the student under that stage."""
    return [torch.load(large[request.param] / f"{rank}.pt") for rank in range(2)]


@pytest.mark.engine
@pytest.mark.parametrize("kind", KINDS)
def test_a_teacher_in_parts_says_what_a_whole_one_does(kind: str, found: list[dict[Any, Any]]):
    for rank in found:
        whole, parts = rank[kind, "whole"], rank[kind, "parts"]
        assert [len(states) for states in parts["states"]] == [len(states) for states in whole["states"]]
        assert all(torch.equal(*pair) for pair in zip(parts["states"], whole["states"], strict=True))
        assert torch.equal(parts["head"], whole["head"])
        assert parts["vocabulary"] == cases.VOCABULARY
    assert min(len(states) for rank in found for states in rank[kind, "parts"]["states"]) == 0, "an empty batch too"


@pytest.mark.engine
@pytest.mark.parametrize("kind", KINDS)
def test_a_rank_holds_its_part_alone_while_the_teacher_rests(kind: str, found: list[dict[Any, Any]]):
    rows = [len(rank[kind, "parts"]["head"]) for rank in found]
    for rank, own in zip(found, rows, strict=True):
        left = rank[kind, "parts"]
        if kind in ("by_vocabulary", "offloaded"):
            assert left["held"]["whole"] == own * 24 and sum(rows) == cases.VOCABULARY
        else:
            assert left["held"]["whole"] == 0 and left["head_gone"], "something of it is still whole"
        elements = ELEMENTS[kind == "tied"] - HEAD * (kind in ("by_vocabulary", "offloaded"))
        assert elements / 2 <= left["held"]["parts"] < elements / 2 + 100, "parts are padded a little"


@pytest.mark.engine
@pytest.mark.parametrize("kind", ["whole", "by_vocabulary"])
def test_its_student_gets_the_same_gradient(kind: str, found: list[dict[Any, Any]]):
    """Where ranks have micro-batches of unlike size, and some of them none."""
    for rank in found:
        for whole, parts in zip(rank[kind, "whole"]["steps"], rank[kind, "parts"]["steps"], strict=True):
            assert parts["loss"] == whole["loss"] != 0
            assert parts["grads"].keys() == whole["grads"].keys()
            assert all(torch.equal(grad, whole["grads"][name]) for name, grad in parts["grads"].items())
            assert max(float(grad.abs().max()) for grad in parts["grads"].values()) > 0
            assert parts["held"] == rank[kind, "parts"]["held"], "it rests after a step"
    batches = [[step["batches"] for step in rank[kind, "parts"]["steps"]] for rank in found]
    assert batches[0] != batches[1] and [len(b) for b in batches[0]] == [len(b) for b in batches[1]]
    assert any(0 in one for one in batches[0] + batches[1]), "a rank without a rollout"
