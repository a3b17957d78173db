"""The student's weights on their way to the engine."""

import pytest
import torch
from torch import nn

from opd import student
from opd.student import buckets


def test_weights_go_out_in_buckets_and_a_larger_one_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(student, "BUCKET_BYTES", 40)
    sizes = [4, 5, 1, 30, 2, 8, 1]
    parameters = [(str(i), nn.Parameter(torch.zeros(size))) for i, size in enumerate(sizes)]
    found = [[parameter.numel() for _, parameter in bucket] for bucket in buckets(parameters)]
    assert found == [[4, 5, 1], [30], [2, 8], [1]]


def test_of_a_sharded_weight_the_whole_counts(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(student, "BUCKET_BYTES", 40)
    parameters = [(str(i), nn.Parameter(torch.zeros(1))) for i in range(3)]
    for _, parameter in parameters:
        parameter.ds_numel = 6
    assert [len(bucket) for bucket in buckets(parameters)] == [1, 1, 1]
