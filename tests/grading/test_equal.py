"""Hand-checked pairs: equivalent, not equivalent, malformed."""

import json
from collections import Counter
from pathlib import Path

import pytest

from opd.grading.equal import equal, label

PAIRS = [json.loads(line) for line in (Path(__file__).parent / "pairs.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("kind", sorted({pair["kind"] for pair in PAIRS}))
def test_hand_checked_pairs(kind: str):
    wrong = [p for p in PAIRS if p["kind"] == kind and equal(p["given"], p["gold"]) is not p["equal"]]
    assert wrong == []


def test_the_table_is_large_and_two_sided():
    assert len(PAIRS) >= 300
    assert len({(pair["given"], pair["gold"]) for pair in PAIRS}) == len(PAIRS)
    assert min(Counter(pair["equal"] for pair in PAIRS).values()) >= 100


@pytest.mark.parametrize(
    ("same", "expected"),
    [
        ((r"\frac12", "0.5", r"x=\frac{1}{2}", "2/4", r"\dfrac{1}{2} \text{ cm}"), "1/2"),
        ((r"50\%", "50", "$50", "50.0", "50 dollars"), "50"),
        ((r"\{2, 1\}", "1,2", "2 and 1", "x=1, 2"), "1,2"),
        (("(1, 0.5)", r"\left(1,\frac12\right)", "(x,y)=(1,1/2)", "x=1, y=1/2"), "(1,1/2)"),
        (("(B)", "B", r"\textbf{(b)}"), "b"),
        ((r"\text{No}", "no", "No."), "no"),
        ((r"2\sqrt3", r"2 \sqrt{3}"), r"2\sqrt{3}"),
        (("", "  ", "$"), ""),
    ],
)
def test_equal_answers_share_a_label(same: tuple[str, ...], expected: str):
    assert {label(text) for text in same} == {expected}


def test_answers_that_differ_have_different_labels():
    answers = ("12", "1,2", "(1,2)", "[1,2]", "(2,1)", "1 2", "-12", "x", "x^2", "12x", "A and B", "no")
    assert len({label(text) for text in answers}) == len(answers)


def test_a_label_of_hostile_text_comes():
    assert all(isinstance(label(piece * 5_000), str) for piece in ("(", "{", "1,", "\\frac", "^"))
