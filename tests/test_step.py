"""The step: equal to an independent computation, and the same for any packing, any passes, any order of work."""

import math
from dataclasses import replace

import pytest
import torch

from eval.statistics import ratio
from opd import step as step_module
from opd.objectives import OBJECTIVES
from opd.plan import with_ratio_advantage
from opd.selection import SELECTORS
from tests import cases, reference


def taken(name: str, *, tied: bool = False, seed: int = 0, **more):
    run = cases.run(cases.recipe(name, **more), tied=tied)
    outcome = cases.taken(run, cases.rollouts(seed))
    return outcome, cases.gradients(run.trainer.student), run.trainer


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", cases.REFERENCES)
@pytest.mark.parametrize("budget", [32, 4096])
def test_loss_and_gradient_equal_plain_autograd(name: str, tied: bool, budget: int):
    outcome, got, _ = taken(name, tied=tied, token_budget=budget)
    loss, expected = cases.independent(name, tied=tied)
    assert abs(outcome.metrics["loss"] - loss) < 1e-9
    assert cases.relative_error(got, expected) < 1e-9


@pytest.mark.parametrize("name", cases.LOSSES)
def test_any_token_budget_gives_the_same_gradient(name: str):
    one, whole, trainer = taken(name)
    assert trainer.backwards == 1
    for budget, at_least in [(32, 7), (70, 3), (130, 2)]:
        outcome, got, trainer = taken(name, token_budget=budget)
        assert trainer.backwards >= at_least * len(outcome.rollouts) // 11
        assert cases.relative_error(got, whole) < 1e-12
        assert outcome.metrics["loss"] == pytest.approx(one.metrics["loss"], abs=1e-12)
        assert cases.same_weights(outcome.weights, one.weights, within=1e-12)


@pytest.mark.parametrize("name", ["all", "soft_or_rollout", "three_terms", "teacher_top"])
def test_one_pass_equals_score_then_train(name: str, monkeypatch: pytest.MonkeyPatch):
    lengths = [r.length for r in cases.rollouts()]
    assert step_module.counts_before(cases.recipe(name), lengths) is not None
    once, fast, _ = taken(name, token_budget=64)
    monkeypatch.setattr(step_module, "counts_before", lambda recipe, lengths: None)
    twice, slow, _ = taken(name, token_budget=64)
    assert cases.relative_error(fast, slow) < 1e-12
    once.metrics.pop("time/score", None)
    assert once.metrics == pytest.approx(twice.metrics, abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("count", [1, 11])
def test_divergences_are_means_over_tokens_clustered_by_rollout(count: int):
    run, rollouts = cases.run(cases.recipe("soft_or_batch", token_budget=64)), cases.rollouts()[:count]
    found = step_module.divergences(run, rollouts)
    ours, theirs = reference.both(cases.model(1, hidden=16), cases.model(2, hidden=24), rollouts)
    for name, first, second in (("reverse_kl", ours, theirs), ("forward_kl", theirs, ours)):
        sums = [float(reference.kl(p, q).sum().detach()) for p, q in zip(first, second, strict=True)]
        expected = ratio(sums, [r.length for r in rollouts])
        assert found[name] == pytest.approx(expected["score"], rel=1e-5)
        assert found[f"{name}_stderr"] == pytest.approx(expected["stderr"], rel=1e-5)
    assert found["tokens"] == sum(r.length for r in rollouts)


def test_a_batch_scope_is_never_one_pass():
    assert step_module.counts_before(cases.recipe("soft_or_batch"), [3, 4]) is None


def test_statistics_are_measured_only_when_needed():
    sparse = {"metrics": {"full_every": 4}}
    assert step_module.needed_statistics(cases.recipe("all", **sparse), 2) == frozenset()
    watched = {"student_stop_mass", "teacher_stop_mass", "trainer_logprob"}
    asked = {"student_entropy", "reverse_kl"}
    for index in (1, 2):
        assert step_module.needed_statistics(cases.recipe("soft_or_batch", **sparse), index) == asked | watched
    first_of_new_weights = step_module.needed_statistics(cases.recipe("all", **sparse), 1)
    assert first_of_new_weights == {"student_stop_mass", "trainer_logprob"}
    assert step_module.needed_statistics(cases.recipe("all", **sparse), 4) == step_module.MEASURED


def test_each_selector_and_each_objective_stands_in_a_case():
    terms = [term for case in cases.LOSSES for term in cases.recipe(case).loss]
    assert {term.select.type for term in terms} == SELECTORS.keys()
    assert {term.objective.type for term in terms} == OBJECTIVES.keys()


@pytest.mark.parametrize("name", sorted(cases.LOSSES.keys() - set(cases.DRAWN)))
def test_the_order_of_rollouts_in_a_step_does_not_matter(name: str):
    run, other = (cases.run(cases.recipe(name)) for _ in range(2))
    cases.taken(run, cases.rollouts())
    cases.taken(other, cases.rollouts()[::-1])
    assert cases.relative_error(cases.gradients(other.trainer.student), cases.gradients(run.trainer.student)) < 1e-12


def test_where_rollouts_are_chosen_late_a_step_tells_of_those_that_train():
    run = cases.run(cases.recipe("d3s_by_ratio"))
    outcome = cases.taken(run, cases.rollouts())
    assert len(outcome.rollouts) == 6 < len(cases.rollouts())
    tokens = [token for rollout in outcome.rollouts for token in rollout.completion]
    assert outcome.table.token_id_C.tolist() == tokens and outcome.metrics["tokens"] == len(tokens)
    assert {len(weight_C) for weight_C in outcome.weights} == {len(tokens)}
    assert all(column.shape[0] == len(tokens) for column in outcome.table.statistics.values())
    paid_C = outcome.table["reverse_kl"][outcome.weights[0] > 0]
    assert float(paid_C.mean()) == pytest.approx(outcome.metrics["loss"]), "or others are told of than those that paid"


def test_a_rollout_that_loses_a_late_choice_is_told_of_though_not_chosen(monkeypatch: pytest.MonkeyPatch):
    chosen, rollouts = cases.recipe("d3s_by_ratio"), cases.rollouts()
    stay = cases.taken(cases.run(chosen), rollouts).rollouts
    gone = torch.tensor([rollouts.index(next(r for r in rollouts if r.completion and r not in stay))])

    def lost(recipe, table):
        found = with_ratio_advantage(recipe, table)
        return replace(found, advantage_B=found.advantage_B.index_fill(0, gone, torch.nan))

    monkeypatch.setattr(step_module, "with_ratio_advantage", lost)
    outcome = cases.taken(cases.run(chosen), rollouts)
    assert outcome.rollouts == rollouts and math.isnan(outcome.metrics["loss"])


@pytest.mark.parametrize("chosen", [{}, {"rollout_selection": {"type": "all"}}], ids=["widest", "all"])
@pytest.mark.parametrize("name", ["d3s", "d3s_by_ratio"])
def test_the_advantage_is_a_metric_wherever_there_is_one(name: str, chosen: dict):
    assert cases.taken(cases.run(cases.recipe(name, **chosen)), cases.rollouts()).metrics["advantage"] > 0


def test_a_step_of_empty_rollouts_pays_nothing():
    run = cases.run(cases.recipe("soft_or_batch"))
    outcome = cases.taken(run, [r for r in cases.rollouts() if r.length == 0])
    assert outcome.metrics["loss"] == 0
    assert all(bool((g == 0).all()) for g in cases.gradients(run.trainer.student).values())


def test_gradient_checkpointing_does_not_change_the_gradient():
    _, plain, _ = taken("soft_or_batch")
    run = cases.run(cases.recipe("soft_or_batch"))
    run.trainer.student.model.gradient_checkpointing_enable({"use_reentrant": False})
    cases.taken(run, cases.rollouts())
    assert cases.relative_error(cases.gradients(run.trainer.student), plain) < 1e-12


def test_offloaded_checkpoints_take_each_blocks_input_to_the_host_and_no_weight(monkeypatch):
    """And leave the gradient as it is; here the host's memory is all that there is."""
    _, plain, _ = taken("all")
    left = []

    class Host(torch.autograd.graph.saved_tensors_hooks):
        def __init__(self, **_):
            super().__init__(lambda tensor: left.append(tensor.shape) or tensor.clone(), lambda tensor: tensor)

    monkeypatch.setattr("transformers.modeling_utils.save_on_cpu", Host)
    run = cases.run(cases.recipe("all"))
    run.trainer.student.model.gradient_checkpointing_enable({"use_reentrant": False}, offload=True)
    cases.taken(run, cases.rollouts())
    assert cases.relative_error(cases.gradients(run.trainer.student), plain) < 1e-12
    assert len(left) == 2 * run.trainer.backwards and all(shape[-1] == 16 and len(shape) == 3 for shape in left)


def test_loss_temperature_divides_both_models_logits():
    outcome, got, _ = taken("all", loss_temperature=2.0)
    plain, teacher = cases.model(1, hidden=16), cases.model(2, hidden=24)
    with torch.no_grad():
        teacher.lm_head.weight /= 2
    hot = [torch.log_softmax(plain(torch.tensor([r.token_ids])).logits[0] / 2, -1) for r in cases.rollouts()]
    cold = [torch.log_softmax(teacher(torch.tensor([r.token_ids])).logits[0], -1) for r in cases.rollouts()]
    rows = [[p - 1 for p in r.positions] for r in cases.rollouts()]
    pairs = [(h[i], c[i].detach()) for h, c, i in zip(hot, cold, rows, strict=True)]
    loss = torch.cat([(h.exp() * (h - c)).sum(-1) for h, c in pairs]).mean()
    loss.backward()
    assert outcome.metrics["loss"] == pytest.approx(loss.item(), abs=1e-9)
    assert cases.relative_error(got, {name: p.grad for name, p in plain.named_parameters()}) < 1e-9
