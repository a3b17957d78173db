import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from opd.head.statistics import MEASURED, NORMALISERS, STATISTICS, top
from tests.build import random_states, states, statistics
from tests.oracle import assert_close, both_precisions, cases, counted, pair, spread

SETTINGS = {"temperature": 0.7, "sampler_temperature": 1.3, "stop": (2, 5)}


def random_pair():
    return random_states(13, 4, 11, seed=1), random_states(13, 6, 11, seed=2)


@both_precisions
@cases("divergences")
def test_entropies_and_divergences_equal_the_oracle(case, dtype):
    expected = case["expected"]
    found = statistics(*pair(case, dtype), temperature=case["inputs"]["temperature"])
    assert_close(found["student_entropy"], expected["student_entropy"]["loss"])
    assert_close(found["teacher_entropy"], expected["teacher_entropy"])
    assert_close(found["reverse_kl"], expected["reverse_kl"]["loss"])
    assert_close(found["forward_kl"], expected["forward_kl"]["loss"])


@both_precisions
@cases("divergences")
@pytest.mark.parametrize("name", ["student_logprob", "trainer_logprob"])
def test_each_log_prob_is_taken_at_its_own_temperature(case, dtype, name):
    logits_NV, temperature = case["inputs"]["student_logits"], case["inputs"]["temperature"]
    names = ("temperature", "sampler_temperature")
    own, other = names if name == "student_logprob" else reversed(names)
    for token in range(len(logits_NV[0])):
        token_id_N = torch.full((len(logits_NV),), token)
        settings = {own: temperature, other: 3.0}
        found = statistics(states(logits_NV, dtype), None, [name], token_id_N=token_id_N, **settings)
        assert_close(found[name], [row[token] for row in case["expected"]["student_log_probs"]])


@both_precisions
@cases("sampled_token")
def test_sampled_log_probs_equal_the_oracle(case, dtype):
    ids = torch.tensor(case["inputs"]["token_ids"])[counted(case)]
    found = statistics(*pair(case, dtype), token_id_N=ids)
    for name in ("student_logprob", "teacher_logprob"):
        assert_close(spread(found[name], case), case["expected"][name])


@both_precisions
@cases("tsdkd", "tsdkd")
def test_candidates_are_the_students_top_in_the_students_order(case, dtype):
    student, teacher = pair(case, dtype)
    names = [name for name in STATISTICS if name.startswith("candidate")]
    found = statistics(student, teacher, names, candidates=case["inputs"]["k"])
    rows = {position: row for row, position in enumerate(counted(case).tolist())}
    for expected in case["expected"]["ranking"]:
        ids_K, theirs_K = (found[f"candidate_{x}"][rows[expected["position"]]] for x in ("id", "teacher_logprob"))
        assert ids_K.tolist() == expected["candidates"]
        assert ids_K[theirs_K.argsort(descending=True, stable=True)].tolist() == expected["ranked"]


@cases("divergences")
def test_bf16_is_no_worse_than_plain_torch(case):
    temperature = case["inputs"]["temperature"]
    student, teacher = pair(case, torch.bfloat16)
    log_ps, log_pt = (torch.log_softmax(s.hidden_NH.float() / temperature, -1) for s in (student, teacher))
    truth = torch.tensor(case["expected"]["reverse_kl"]["loss"])
    plain = ((log_ps.exp() * (log_ps - log_pt)).sum(-1) - truth).abs()
    found = (statistics(student, teacher, temperature=temperature)["reverse_kl"] - truth).abs()
    assert (found <= plain + 1e-5 * truth.clamp_min(1)).all()


def test_a_statistic_does_not_depend_on_tiles_or_company():
    student, teacher = random_pair()
    token_id_N = torch.arange(13) % 11
    more = {"token_id_N": token_id_N, "merge_stop": True, **SETTINGS}
    whole = statistics(student, teacher, STATISTICS, **more)
    for tile_bytes in (1, 1500, 5000):
        tiled = statistics(student, teacher, STATISTICS, tile_bytes=tile_bytes, **more)
        for name in STATISTICS:
            torch.testing.assert_close(tiled[name], whole[name], rtol=1e-12, atol=1e-12)
    for name in STATISTICS:
        alone = statistics(student, teacher, [name], **more)
        torch.testing.assert_close(alone[name], whole[name], rtol=0, atol=0)


@pytest.mark.parametrize("merge_stop", [False, True])
def test_a_row_is_its_own(merge_stop):
    student, teacher = random_pair()
    token_id_N, rows_n = torch.arange(13) % 11, torch.tensor([11, 2, 5])
    whole = statistics(student, teacher, STATISTICS, token_id_N=token_id_N, merge_stop=merge_stop, **SETTINGS)
    few = [s.rows(rows_n) for s in (student, teacher)]
    found = statistics(*few, STATISTICS, token_id_N=token_id_N[rows_n], merge_stop=merge_stop, **SETTINGS)
    for name in STATISTICS:
        torch.testing.assert_close(found[name], whole[name][rows_n], rtol=1e-12, atol=1e-12)


def test_candidates_are_columns_of_their_own_and_no_numbers_to_report():
    found = statistics(*random_pair(), STATISTICS, candidates=4)
    wide = {name for name, column in found.items() if column.ndim == 2}
    assert {column.shape for name, column in found.items() if name in wide} == {(13, 4)}
    assert wide.isdisjoint(MEASURED) and {found[name].shape for name in MEASURED} == {(13,)}


def test_more_candidates_than_classes_are_all_classes():
    found = statistics(*random_pair(), ["candidate_id"], candidates=50)
    assert found["candidate_id"].sort(-1).values.tolist() == [list(range(11))] * 13


def test_ties_among_candidates_go_to_the_lower_id():
    found = statistics(states([[1.0, 2.0, 2.0, 1.0, 1.0, 2.0]] * 2), None, ["candidate_id"], candidates=4)
    assert found["candidate_id"].tolist() == [[1, 2, 5, 0]] * 2


@pytest.mark.parametrize("levels", [1, 2, 5, 1000])
@pytest.mark.parametrize("k", [1, 3, 40, 50])
@pytest.mark.parametrize("waits", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_the_likeliest_come_highest_first_and_ties_go_to_the_lower_id(dtype, waits, k, levels, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "is_cuda", not waits)  # on a GPU it goes another way
    generator = torch.Generator().manual_seed(0)
    logits_nV = torch.randint(levels, (30, 40), generator=generator).sub(levels // 2).to(dtype)
    expected = logits_nV.sort(dim=-1, descending=True, stable=True).indices[:, :k]
    assert torch.equal(top(logits_nV, k), expected)
    assert torch.equal(top(logits_nV.T.contiguous().T, k), expected)


def test_no_shape_follows_from_numbers_for_which_a_gpu_would_be_waited_for(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    with FakeTensorMode():
        assert top(torch.empty(3, 9), 2).shape == (3, 2)


def test_the_teachers_first_token_is_read_in_both_models():
    student, teacher = states([[0.0, 1.0, 2.0]]), states([[3.0, 5.0, 4.0]])
    names = ["teacher_top_id", "teacher_top_student_logprob", "teacher_top_logprob"]
    found = [float(statistics(student, teacher, names)[name]) for name in names]
    own = -math.log(1 + math.e + math.exp(-1))
    assert found == pytest.approx([1, own, -math.log(1 + math.exp(-1) + math.exp(-2))])


@both_precisions
def test_what_a_model_rules_out_has_probability_0(dtype):
    """The teacher can't do class 2, at the sampled token, among candidates and in an end class of its own."""
    student, teacher = states([[0.0, 1.0, 2.0]], dtype), states([[0.0, 1.0, -torch.inf]], dtype)
    settings = {"candidates": 3, "stop": (2,), "token_id_N": torch.tensor([2])}
    found = statistics(student, teacher, STATISTICS, **settings)
    assert float(found["teacher_logprob"]) == -math.inf and float(found["teacher_stop_mass"]) == 0
    assert found["candidate_id"].tolist() == [[2, 1, 0]]
    assert (found["candidate_teacher_logprob"] == -math.inf).tolist() == [[True, False, False]]
    own = statistics(teacher, None, ["student_logprob", "trainer_logprob"], **settings)
    assert [float(column) for column in own.values()] == [-math.inf] * 2
    assert all(found[name].isfinite().all() for name in STATISTICS if name.startswith(("student", "trainer")))


def test_no_rows_give_empty_columns():
    student, teacher = random_states(0, 4, 11, seed=1), random_states(0, 6, 11, seed=2)
    found = statistics(student, teacher, STATISTICS, candidates=3)
    assert {column.numel() for column in found.values()} == {0} and found.keys() == STATISTICS.keys()


def test_bf16_statistics_are_kept_in_float32():
    logits = torch.randn(3, 5)
    found = statistics(states(logits, torch.bfloat16), states(logits, torch.bfloat16), STATISTICS)
    assert {column.dtype for name, column in found.items() if name not in NORMALISERS} == {torch.float32}


@pytest.mark.parametrize("name", STATISTICS)
def test_a_missing_teacher_is_refused_exactly_where_it_is_needed(name):
    student, _ = random_pair()
    if STATISTICS[name].needs_teacher:
        with pytest.raises(ValueError, match="the teacher's whole distribution is needed"):
            statistics(student, None, [name])
    else:
        assert len(statistics(student, None, [name])[name]) == len(student)


def test_an_unknown_statistic_is_refused_by_name():
    with pytest.raises(KeyError, match="surprise"):
        statistics(*random_pair(), ["surprise"])


@both_precisions
@pytest.mark.parametrize("name", STATISTICS)
def test_extreme_logits_and_classes_that_both_rule_out_stay_finite(name, dtype):
    logits_NV = [[1e4, -1e4, 0.0, 5.0, -torch.inf], [-1e4, 0.0, 1e4, 5.0, -torch.inf], [0.0, 1e4, 1e4, 1e4, -torch.inf]]
    student, teacher = (states(rows, dtype) for rows in (logits_NV, logits_NV[::-1]))
    for merge_stop in (False, True):
        settings = {"stop": (1, 4), "merge_stop": merge_stop, "token_id_N": torch.tensor([1, 0, 3])}
        assert statistics(student, teacher, [name], **settings)[name].isfinite().all()
