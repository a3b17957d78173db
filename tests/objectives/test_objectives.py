"""One contract over the registry: an objective added later is tested from its first day."""

import pytest
import torch
from pydantic import ValidationError

from opd.objectives import OBJECTIVES
from opd.objectives.jsd import JSD
from tests.oracle import assert_close, cases

EVERY = [*(cls() for cls in OBJECTIVES.values()), *(JSD(beta=beta) for beta in (0, 0.1, 0.9, 1))]
every_objective = pytest.mark.parametrize("objective", EVERY, ids=repr)


def log_probs(seed: int, *, spread: float = 3.0) -> torch.Tensor:
    logits = spread * torch.randn(5, 9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return logits.log_softmax(-1)


@every_objective
@pytest.mark.parametrize("spread", [0.01, 3.0, 30.0])
def test_the_slope_is_the_derivative_of_the_value_in_a_free_log_p(objective, spread):
    log_ps_nV, log_pt_nV = log_probs(1, spread=spread).requires_grad_(), log_probs(2, spread=spread)
    value_nV, slope_nV = objective(log_ps_nV, log_pt_nV)
    (expected_nV,) = torch.autograd.grad(value_nV.sum(), log_ps_nV)
    assert_close(slope_nV.detach(), expected_nV, 1e-12)


@every_objective
def test_value_and_slope_are_elementwise(objective):
    log_ps_nV, log_pt_nV = log_probs(1), log_probs(2)
    value_nV, slope_nV = objective(log_ps_nV, log_pt_nV)
    for rows, columns in ((slice(2, 3), slice(None)), (slice(None), slice(4, 6))):
        part_value, part_slope = objective(log_ps_nV[rows, columns], log_pt_nV[rows, columns])
        assert_close(part_value, value_nV[rows, columns], 1e-15)
        assert_close(part_slope, slope_nV[rows, columns], 1e-15)


@every_objective
def test_no_divergence_is_negative_and_none_is_left_between_equals(objective):
    log_ps_nV, log_pt_nV = log_probs(1), log_probs(2)
    assert (objective(log_ps_nV, log_pt_nV)[0].sum(-1) > 0).all()
    assert objective(log_ps_nV, log_ps_nV)[0].sum(-1).abs().max() < 1e-14


@every_objective
def test_inputs_are_left_as_they_were(objective):
    log_ps_nV, log_pt_nV = log_probs(1), log_probs(2)
    objective(log_ps_nV, log_pt_nV)
    assert torch.equal(log_ps_nV, log_probs(1)) and torch.equal(log_pt_nV, log_probs(2))


@every_objective
def test_probabilities_that_underflow_stay_finite_in_float32(objective):
    log_ps_nV = torch.tensor([[0.0, -200.0, -500.0]])
    for log_pt_nV in (log_ps_nV.flip(-1), log_ps_nV):
        value_nV, slope_nV = objective(log_ps_nV, log_pt_nV)
        assert value_nV.isfinite().all() and slope_nV.isfinite().all()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_registry_name_is_the_type_that_a_recipe_writes(name):
    assert OBJECTIVES[name]().type == name
    assert OBJECTIVES[name].__doc__


@cases("divergences")
def test_jsd_over_beta_times_one_minus_beta_tends_to_the_two_kls(case):
    temperature = case["inputs"]["temperature"]
    log_ps_NV, log_pt_NV = (
        (torch.tensor(case["inputs"][f"{who}_logits"], dtype=torch.float64) / temperature).log_softmax(-1)
        for who in ("student", "teacher")
    )
    for point in case["expected"]["jsd_over_beta_times_one_minus_beta"]:
        beta = point["beta"]
        value_N = JSD(beta=beta)(log_ps_NV, log_pt_NV)[0].sum(-1) / (beta * (1 - beta))
        assert_close(value_N, point["value"], 1e-9 + 1e-16 / min(beta, 1 - beta))


@cases("divergences")
def test_the_ends_of_jsd_mean_the_two_kls(case):
    for beta in (0, 1):
        expected = OBJECTIVES[case["expected"][f"jsd_{beta}"]["equals"]]()
        for ours, theirs in zip(
            JSD(beta=beta)(log_probs(1), log_probs(2)), expected(log_probs(1), log_probs(2)), strict=True
        ):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("beta", [-0.1, 1.1, float("nan")])
def test_a_beta_outside_its_range_is_refused(beta):
    with pytest.raises(ValidationError, match="beta"):
        JSD(beta=beta)
