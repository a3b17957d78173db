import math
import os
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from opd.metrics import (
    METRICS,
    Clock,
    objective_metrics,
    quadrants,
    repetitive,
    reset_resident_peak,
    resident_peak,
    rollout_metrics,
    token_metrics,
    training_share,
)
from opd.objectives.tgdpo import TGDPO
from opd.selection.scaling import min_max, scaled_entropy
from tests.build import random_table, states, statistics, token_table
from tests.oracle import assert_close, cases


def counted_columns(case):
    counted = torch.tensor(case["inputs"]["mask"]) > 0
    return counted, {
        name: torch.tensor(case["expected"][name], dtype=torch.float64)[counted] for name in ("h", "delta")
    }


@cases("tip")
def test_quadrants_at_the_medians_equal_the_oracle(case):
    _, columns = counted_columns(case)
    expected = case["expected"]["quadrants_at_medians"]
    found = quadrants(columns["h"], columns["delta"], cuts=(expected["h_cut"], expected["delta_cut"]))
    assert found == pytest.approx(expected["shares"], abs=1e-12)


@cases("tip")
def test_quadrants_at_cuts_equal_the_oracle(case):
    counted, _ = counted_columns(case)
    pair = [states(torch.tensor(case["inputs"][f"{who}_logits"])[counted]) for who in ("student", "teacher")]
    columns = statistics(*pair)
    h_C, d_C = scaled_entropy(columns["student_entropy"]), min_max(columns["reverse_kl"])
    expected = case["expected"]["quadrants_at_cuts"]
    for found_C, field in ((h_C, "h_hat"), (d_C, "delta_hat")):
        assert_close(
            found_C, torch.tensor(case["expected"]["normalised"]["batch"][field], dtype=torch.float64)[counted]
        )
    found = quadrants(h_C, d_C, cuts=(expected["h_hat_cut"], expected["delta_hat_cut"]))
    assert found == pytest.approx(expected["shares"], abs=1e-12)


def test_a_token_on_its_cut_is_low():
    one = torch.tensor([0.5])
    assert quadrants(one, one, cuts=(0.5, 0.5))["Q4"] == 1.0
    assert quadrants(one, one, cuts=(0.5, 0.4))["Q3"] == 1.0
    assert quadrants(one, one, cuts=(0.4, 0.5))["Q2"] == 1.0
    assert quadrants(one, one, cuts=(0.4, 0.4))["Q1"] == 1.0


def test_shares_of_no_tokens_are_not_a_number():
    assert all(map(math.isnan, quadrants(torch.zeros(0), torch.zeros(0), cuts=(0.5, 0.5)).values()))


def test_a_term_reports_what_it_keeps_and_how_much_divergence_stands_there():
    table = token_table([4], {"reverse_kl": torch.tensor([1.0, 2.0, 3.0, 4.0])})
    metrics = token_metrics(table, [torch.tensor([0.0, 0.0, 1.0, 0.5]), torch.ones(4)], cuts=(0.5, 0.5))
    assert (metrics["term0/kept"], metrics["term0/divergence_kept"]) == (0.5, pytest.approx(0.7))
    assert (metrics["term1/kept"], metrics["term1/divergence_kept"]) == (1.0, 1.0)
    assert metrics["reverse_kl"] == 2.5


def test_every_metric_of_a_step_is_documented():
    table = random_table([3, 2])
    metrics = rollout_metrics(table, [], stop=(1,)) | token_metrics(table, [torch.ones(5)], cuts=(0.5, 0.5))
    table = table.with_statistics({"reference_logprob": table["teacher_logprob"]} | table.statistics)
    metrics |= objective_metrics([TGDPO()], table, [torch.ones(5)])
    assert {name.replace("term0/", "term*/") for name in metrics} <= set(METRICS)
    assert {"term0/distrusted", "Q1", "gap_p99", "sampled_reverse_kl", "student_stop_mass", "advantage"} <= set(metrics)


def test_the_density_of_stops_counts_every_end_token():
    table = replace(random_table([3, 2]), token_id_C=torch.tensor([5, 6, 1, 2, 9]))
    assert rollout_metrics(table, [], stop=(1, 2))["stop_density"] == pytest.approx(0.4)


def test_loops_are_repetitive_and_arithmetic_is_not():
    assert repetitive(["wait, " * 400, "3 + 4 = 7, and 7 + 5 = 12."]) == 0.5
    assert math.isnan(repetitive([]))


def test_a_rollout_counts_as_kept_where_one_of_its_tokens_trains():
    weights = [torch.tensor([0.0, 1.0, 0.0, 0.0]), torch.zeros(4)]
    assert training_share(token_table([1, 2, 1], {}), weights, of=4) == 0.25


def test_a_resident_peak_outlives_what_was_held_until_it_is_reset():
    held = bytearray(256 << 20)
    del held
    high = resident_peak()
    reset_resident_peak()
    assert high - resident_peak() > 200 << 20


def test_on_a_gpu_a_phase_holds_what_is_allocated_but_for_vllms_own(monkeypatch):
    """Torch counts weights and cache of an engine that sleeps, though the card has them free."""
    pools = SimpleNamespace(get_current_usage=lambda: 20 << 30)
    module = SimpleNamespace(CuMemAllocator=SimpleNamespace(instance=pools))
    monkeypatch.setitem(sys.modules, "vllm.device_allocator.cumem", module)
    for name, value in {"is_available": True, "max_memory_allocated": 50 << 30}.items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    for name in ("synchronize", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    clock = Clock()
    with clock("train"):
        pass
    assert clock.take()["memory/train"] == 30.0
    module.CuMemAllocator.instance = None
    with clock("train"):
        pass
    assert clock.take()["memory/train"] == 50.0


def test_a_process_that_has_ended_has_no_resident_peak():
    ended = subprocess.Popen(["true"])
    os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)  # not yet reaped: it has a status, without memory
    with pytest.raises(OSError, match="no VmHWM"):
        resident_peak(ended.pid)
    ended.wait()
