"""Strips cover the vocabulary once, in order, whether products are kept or made anew."""

import pytest
import torch
from torch import Tensor

from opd.head.settings import LEAST, HeadSettings
from opd.head.shard import whole_of
from opd.head.strips import Strips, held
from opd.head.weights import HiddenStates
from tests.build import random_states
from tests.oracle import assert_close

N, V, STOP = 5, 23, (7, 22, 0)
every_tile = pytest.mark.parametrize("tile_bytes", [1, 900, 5000, 1 << 20])
either = pytest.mark.parametrize("keeps", [False, True], ids=["anew", "kept"])


def pair(**head) -> tuple[HiddenStates, HiddenStates]:
    return random_states(N, 4, V, seed=1, **head), random_states(N, 6, V, seed=2)


def strips_of(student: HiddenStates, teacher: HiddenStates | None, keeps: bool, **settings) -> Strips:
    return Strips(student, teacher, HeadSettings(**settings), whole_of(student.head), {} if keeps else None)


def swept(strips: Strips, *, merge: bool = False) -> dict[str, Tensor]:
    """The logits of a whole sweep, [n, V] of each model."""
    parts = [{w: x.clone() for w, x in (strips.merge(s) if merge else s).logits.items()} for s in strips]
    return {who: torch.cat([part[who] for part in parts]).T for who in parts[0]}


@every_tile
@either
def test_strips_are_the_whole_logits_in_every_sweep(keeps, tile_bytes):
    student, teacher = pair(softcap=2.0, scale=0.7)
    strips = strips_of(student, teacher, keeps, tile_bytes=tile_bytes)
    for _ in range(3):
        found = swept(strips)
        assert_close(found["student"], student.head.logits(student.hidden_NH), 1e-13)
        assert_close(found["teacher"], teacher.head.logits(teacher.hidden_NH), 1e-13)


@every_tile
def test_strips_and_blocks_cover_each_column_once(tile_bytes):
    student, _ = pair()
    strips = strips_of(student, None, False, tile_bytes=tile_bytes)
    seen = 0
    for strip in strips:
        assert strip.start == strips.rows_of(strip).start == seen
        strip.student_vn[:] = torch.arange(seen, seen + len(strip.student_vn))[:, None]
        for logits in strip.blocks():
            columns = torch.arange(seen, seen + logits["student"].shape[1]).double()
            assert torch.equal(logits["student"], columns.expand(N, -1))
            logits["student"].zero_()
            seen += len(columns)
        assert not strip.student_vn.any(), "what is written to a block stands in the strip"
    assert seen == V


@every_tile
@pytest.mark.parametrize("temperature", [0.6, 1.0])
@either
def test_end_tokens_are_one_outcome_in_the_firsts_column(keeps, temperature, tile_bytes):
    student, teacher = pair()
    settings = {"temperature": temperature, "stop": STOP, "merge_stop": True, "tile_bytes": tile_bytes}
    strips = strips_of(student, teacher, keeps, **settings)
    for _ in range(2):
        for who, logits_nV in swept(strips, merge=True).items():
            raw_nV = (student if who == "student" else teacher).logits(torch.arange(N))
            assert_close(logits_nV[:, 7] / temperature, (raw_nV[:, STOP] / temperature).logsumexp(-1), 1e-13)
            assert (logits_nV[:, [22, 0]] == LEAST).all()
            assert_close(logits_nV[:, 1:7], raw_nV[:, 1:7], 1e-13)


def test_a_kept_product_is_made_once_and_is_the_callers_to_overwrite():
    student, teacher = pair()
    strips = strips_of(student, teacher, True, tile_bytes=900)
    for strip in strips:
        strip.student_vn.fill_(strip.start)
    found = swept(strips)
    assert found["student"][:, -1].unique().tolist() == [strip.start]
    assert_close(found["teacher"], teacher.head.logits(teacher.hidden_NH), 1e-13)


def test_slabs_share_their_memory_and_a_smaller_one_reads_none_of_the_last():
    student, teacher = pair()
    settings, memory = HeadSettings(tile_bytes=900), {}
    for rows_n in torch.arange(N).split(2):
        own, others = student.rows(rows_n), teacher.rows(rows_n)
        strips = Strips(own, others, settings, whole_of(student.head), memory)
        for _ in range(2):
            assert_close(swept(strips)["student"], own.head.logits(own.hidden_NH), 1e-13)
        assert strips.models["student"]._products_vn.data_ptr() == memory["student"].data_ptr()
    assert memory["student"].numel() == 2 * V


def test_a_class_that_can_not_happen_is_least_and_no_infinity():
    student, _ = pair()
    student.head.bias_V[3] = -torch.inf
    found = swept(strips_of(student, None, False))["student"]
    assert (found[:, 3] == LEAST).all() and found.isfinite().all()


@pytest.mark.parametrize("tile_bytes", [1, 900, 1 << 20])
def test_a_strip_says_which_tokens_it_holds(tile_bytes):
    student, _ = pair()
    ids_NK = torch.arange(2 * N).reshape(N, 2) * 2
    seen_NK = torch.zeros_like(ids_NK)
    for strip in strips_of(student, None, False, tile_bytes=tile_bytes):
        place_NK, inside_NK = strip.holds(ids_NK)
        assert (place_NK >= 0).all() and (place_NK < len(strip.student_vn)).all()
        assert torch.equal((place_NK + strip.start)[inside_NK], ids_NK[inside_NK])
        seen_NK += inside_NK
    assert (seen_NK == 1).all()


def test_a_part_of_a_head_holds_its_own_tokens():
    head = pair()[0].head
    assert held((7, 22, 0), head) == ([0, 1, 2], [7, 22, 0])
    assert held((7, 22, 0), head.part(5, 20)) == ([0], [2])
    assert held((7, 22, 0), head.part(20, 23)) == ([1], [2])
