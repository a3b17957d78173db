"""Numbers that the papers' notes quote (methods.md), written out by hand."""

import math
from dataclasses import replace

import pytest
import torch

from opd.batch import TokenTable
from opd.head.tile import TopScores
from opd.objectives import OBJECTIVES
from opd.objectives.tgdpo import pairs
from opd.objectives.uskd import soft_labels
from tests.build import Models, paying, recipe, states, taken, token_table
from tests.oracle import assert_close

BEST_FIRST = [[5.0, 4.0, 3.0, 2.0, 1.0, 0.0]]


def paid(objective, models: Models, *, rows: int = 1, token_ids: tuple[int, ...] | None = None):
    """What rows of one rollout pay, each with weight 1."""
    ids = None if token_ids is None else torch.tensor(token_ids)
    return taken(paying(objective), token_table([rows], {"weight": torch.ones(rows)}, token_id_C=ids), models)


@pytest.mark.parametrize(("turned", "value"), [(False, 2.069165), (True, 17.069165)])
def test_plackett_luce_of_six_candidates(turned, value):
    teacher = states(BEST_FIRST).hidden_NH.flip(-1) if turned else BEST_FIRST
    found = paid(OBJECTIVES["plackett_luce"](k=6), Models(states(BEST_FIRST), states(teacher)))
    assert_close(found.loss, value, 1e-6)


def test_plackett_luce_raises_what_the_teacher_ranks_higher():
    student, teacher = states([[0.3, 0.2, 0.1, 0.0]]), states([[0.0, 3.0, 1.0, 2.0]])
    logits_V, best_first = student.hidden_NH[0], [1, 3, 2, 0]
    for _ in range(60):
        found = paid(OBJECTIVES["plackett_luce"](k=4), Models(states(logits_V[None]), teacher))
        logits_V = logits_V - found.grads["hidden"][0]
    assert logits_V.argsort(descending=True).tolist() == best_first


def test_two_candidates_are_bradley_terry():
    found = paid(OBJECTIVES["plackett_luce"](k=2), Models(states([[1.0, 0.25, -9.0]]), states([[0.0, 1.0, 5.0]])))
    assert_close(found.loss, -torch.nn.functional.logsigmoid(torch.tensor(-0.75, dtype=torch.float64)))


LISTED = {"bucket": 0.082286, "renormalise": 0.067131}


@pytest.mark.parametrize("tail", LISTED)
@pytest.mark.parametrize("served", [False, True])
def test_the_teachers_top_two_of_four(tail, served):
    student, teacher = states([[2.0, 1.0, 0.0, -1.0]]), states([[2.0, 0.5, 1.0, -1.0]])
    models = Models(student, teacher)
    assert_close(paid(OBJECTIVES["reverse_kl"](), models).loss, 0.086289, 1e-6)
    if served:
        log_p, ids = teacher.hidden_NH.log_softmax(-1).topk(2)
        models = replace(models, teacher=TopScores(ids, log_p))
    assert_close(paid(OBJECTIVES["reverse_kl"](teacher_top=2, tail=tail), models).loss, LISTED[tail], 1e-6)


def test_a_renormalised_list_lets_the_tail_grow_and_a_bucket_does_not():
    teacher = states([[2.0, 1.0, -1.0, -2.0]])
    listed = teacher.hidden_NH.masked_fill(torch.tensor([False, False, True, True]), 9.0)  # half in the tail and more
    student = Models(states(listed), teacher)
    free, held = (
        paid(OBJECTIVES["reverse_kl"](teacher_top=2, tail=tail), student) for tail in ("renormalise", "bucket")
    )
    assert_close(free.loss, 0.0, 1e-12)
    assert held.loss > 1 and (held.grads["hidden"][0, 2:] > 0).all() and not free.grads["hidden"][0, 2:].any()


@pytest.mark.parametrize(
    ("alpha", "beta", "value"), [(0, 0.1, 0.688160), (0.5, 0.1, 0.689828), (2, 0.1, 0.694849), (0.5, 1, 0.817534)]
)
def test_tgdpo_of_one_pair(alpha, beta, value):
    chosen = OBJECTIVES["tgdpo"](alpha=alpha, beta=beta).choose(quoted_pair(1.0, 0.0), torch.ones(5))
    assert_close(chosen.value, value, 1e-6)


@pytest.mark.parametrize("clamp", [False, True])
def test_tgdpo_says_how_many_tokens_of_a_pair_push_the_wrong_way(clamp):
    """α = 5, β = 1: f = 3, −.5, 3.5 in the better rollout and 6.5, −1.5 in the worse."""
    objective = OBJECTIVES["tgdpo"](alpha=5.0, beta=1.0, clamp=clamp)
    assert objective.metrics(quoted_pair(1.0, 0.0), torch.ones(5)) == {"distrusted": pytest.approx(2 / 5)}
    assert objective.metrics(quoted_pair(1.0, 0.0), torch.tensor([1.0, 0, 1, 1, 1])) == {"distrusted": 1 / 4}
    assert math.isnan(objective.metrics(quoted_pair(1.0, 1.0), torch.ones(5))["distrusted"])


def quoted_pair(*rewards: float) -> TokenTable:
    columns = {
        "student_logprob": [-1, -0.5, -2, -0.7, -1.5],
        "reference_logprob": [-1.2, -0.6, -1.5, -0.9, -1],
        "teacher_logprob": [-0.8, -0.9, -1, -2, -0.5],
    }
    columns = {name: torch.tensor(column, dtype=torch.float64) for name, column in columns.items()}
    return token_table([3, 2], columns, reward_B=torch.tensor(rewards))


@pytest.mark.parametrize(
    ("rewards", "found"),
    [
        ([0.0, 1.0, 0.5], [(1, 0)]),
        ([1.0, 1.0, 0.0], [(0, 2)]),
        ([0.0, 0.0, 1.0], [(2, 0)]),
        ([1.0, 1.0, 1.0], []),
        ([float("nan"), 1.0, 0.0], [(1, 2)]),
        ([float("nan"), 1.0, float("nan")], []),
    ],
)
def test_a_pair_is_a_prompts_best_and_worst_and_a_tie_makes_none(rewards, found):
    assert pairs(token_table([2, 1, 3], {}, reward_B=torch.tensor(rewards))) == found


def test_prompts_without_a_pair_pay_nothing():
    names = ("student_logprob", "teacher_logprob", "reference_logprob")
    columns = {name: torch.full((4,), -1.0, dtype=torch.float64) for name in names}
    table = token_table([2, 2], columns, reward_B=torch.tensor([1.0, 1.0]))
    chosen = OBJECTIVES["tgdpo"]().choose(table, torch.ones(4))
    assert chosen.value == 0 and not chosen.slope_CK.any()


NKD = Models(
    states([[2.0, 1.0, 0.0, -1.0], [0.5, -0.5, 1.5, 0.0]]), states([[3.0, 0.0, 1.0, -2.0], [1.0, 0.0, 2.0, -1.0]])
)


def nkd(models: Models, *, temperature: float = 1.0, gamma: float = 1.5, token_ids: tuple[int, ...] = (0, 2)):
    rest = {"type": "nkd_non_target", "temperature": temperature, "gamma": gamma}
    table = token_table([len(token_ids)], {}, token_id_C=torch.tensor(token_ids))
    return taken(recipe({"objective": {"type": "nkd_target"}}, {"objective": rest}), table, models)


@pytest.mark.parametrize(("temperature", "gamma", "value"), [(1, 1.5, 1.975387), (3, 3.5, 34.478421), (1, 1, 1.437077)])
def test_nkd_of_two_rows(temperature, gamma, value):
    assert_close(nkd(NKD, temperature=float(temperature), gamma=float(gamma)).loss, value, 1e-6)


def test_the_gradient_of_nkd():
    expected = [[-0.149382, 0.403684, -0.308934, 0.054633], [-0.050462, -0.018564, -0.135461, 0.204487]]
    assert_close(nkd(NKD).grads["hidden"], expected, 1e-6)


def test_nkd_collapses_a_student_that_is_its_teacher_and_the_stationary_variant_leaves_it():
    same = states(torch.tensor([[0.6, 0.3, 0.1]]).log())
    pushed, still = (
        paid(OBJECTIVES["nkd_target"](stationary=stationary), Models(same, same), token_ids=(0,)).grads["hidden"]
        for stationary in (False, True)
    )
    assert pushed[0, 0] < -0.1 and still.abs().max() < 1e-7


def test_the_zipf_labels_of_uskd_follow_the_paper_not_its_code():
    log_s = torch.tensor([[2.0, 1.0, 0.9, -4.0]]).log_softmax(-1)
    log_w = torch.tensor([[0.2, 0.1, 0.1, 0.6]]).log()
    label_nV = soft_labels(log_s, log_w, torch.tensor([[0]]))
    assert_close(label_nV, [[0.0, 0.3077, 0.2308, 0.4615]], 1e-4)


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])
def test_jsd_falls_to_nothing_towards_its_ends(beta):
    """JSD_0.9 is about a tenth of KL(S‖T), and β = 1 jumps to the whole of it."""
    student, teacher = states([[1.0, 0.2, -0.3]]), states([[0.9, 0.3, -0.2]])
    jsd, kl = (
        paid(o, Models(student, teacher)).loss for o in (OBJECTIVES["jsd"](beta=beta), OBJECTIVES["jsd"](beta=1))
    )
    assert_close(jsd / kl, beta * (1 - beta), 0.01)
