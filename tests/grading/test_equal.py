"""Hand-checked pairs: equivalent, not equivalent, malformed."""

import json
from collections import Counter
from pathlib import Path

import pytest

from opd.grading.equal import equal

PAIRS = [json.loads(line) for line in (Path(__file__).parent / "pairs.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("kind", sorted({pair["kind"] for pair in PAIRS}))
def test_hand_checked_pairs(kind: str):
    wrong = [p for p in PAIRS if p["kind"] == kind and equal(p["given"], p["gold"]) is not p["equal"]]
    assert wrong == []


def test_the_table_is_large_and_two_sided():
    assert len(PAIRS) >= 300
    assert len({(pair["given"], pair["gold"]) for pair in PAIRS}) == len(PAIRS)
    assert min(Counter(pair["equal"] for pair in PAIRS).values()) >= 100
