import pytest
import torch

from opd.head.statistics import NEEDS_TEACHER, STATISTICS
from tests.build import random_states, states, statistics
from tests.oracle import assert_close, both_precisions, cases

SETTINGS = {"temperature": 0.7, "sampler_temperature": 1.3}


def random_pair():
    return random_states(13, 4, 11, seed=1), random_states(13, 6, 11, seed=2)


@both_precisions
@cases("divergences")
def test_entropies_and_divergences_equal_the_oracle(case, dtype):
    given, expected = case["inputs"], case["expected"]
    student, teacher = states(given["student_logits"], dtype), states(given["teacher_logits"], dtype)
    found = statistics(student, teacher, temperature=given["temperature"])
    assert_close(found["student_entropy"], expected["student_entropy"]["loss"])
    assert_close(found["teacher_entropy"], expected["teacher_entropy"])
    assert_close(found["reverse_kl"], expected["reverse_kl"]["loss"])
    assert_close(found["forward_kl"], expected["forward_kl"]["loss"])


@both_precisions
@cases("divergences")
@pytest.mark.parametrize("name", ["student_logprob", "behaviour_logprob"])
def test_each_log_prob_is_taken_at_its_own_temperature(case, dtype, name):
    logits_NV, temperature = case["inputs"]["student_logits"], case["inputs"]["temperature"]
    own, other = tuple(SETTINGS) if name == "student_logprob" else tuple(reversed(SETTINGS))
    student = states(logits_NV, dtype)
    for token in range(len(logits_NV[0])):
        token_id_N = torch.full((len(logits_NV),), token)
        found = statistics(student, None, [name], token_id_N=token_id_N, **{own: temperature, other: 3.0})
        assert_close(found[name], [row[token] for row in case["expected"]["student_log_probs"]])


@both_precisions
@cases("sampled_token")
def test_sampled_log_probs_equal_the_oracle(case, dtype):
    given = case["inputs"]
    student, teacher = states(given["student_logits"], dtype), states(given["teacher_logits"], dtype)
    found = statistics(student, teacher, token_id_N=torch.tensor(given["token_ids"]))
    counted = torch.tensor(given["mask"]) > 0
    for name in ("student_logprob", "teacher_logprob"):
        assert_close(found[name][counted], torch.tensor(case["expected"][name], dtype=torch.float64)[counted])


@both_precisions
@cases("tip")
def test_tip_statistics_equal_the_oracle(case, dtype):
    given, expected = case["inputs"], case["expected"]
    found = statistics(states(given["student_logits"], dtype), states(given["teacher_logits"], dtype))
    counted = torch.tensor(given["mask"]) > 0
    for name, field in {"student_entropy": "entropy", "reverse_kl": "delta", "forward_kl": "forward_kl"}.items():
        assert_close(found[name][counted], torch.tensor(expected[field], dtype=torch.float64)[counted])


@cases("divergences")
def test_bf16_is_no_worse_than_plain_torch(case):
    temperature = case["inputs"]["temperature"]
    student, teacher = (states(case["inputs"][f"{who}_logits"], torch.bfloat16) for who in ("student", "teacher"))
    log_ps, log_pt = (torch.log_softmax(s.hidden_NH.float() / temperature, -1) for s in (student, teacher))
    truth = torch.tensor(case["expected"]["reverse_kl"]["loss"])
    plain = ((log_ps.exp() * (log_ps - log_pt)).sum(-1) - truth).abs()
    found = (statistics(student, teacher, temperature=temperature)["reverse_kl"] - truth).abs()
    assert (found <= plain + 1e-5 * truth.clamp_min(1)).all()


def test_a_statistic_does_not_depend_on_tiles_or_company():
    student, teacher = random_pair()
    token_id_N = torch.arange(13) % 11
    whole = statistics(student, teacher, token_id_N=token_id_N, **SETTINGS)
    for tile_bytes in (1, 1500, 5000):
        tiled = statistics(student, teacher, token_id_N=token_id_N, tile_bytes=tile_bytes, **SETTINGS)
        for name in STATISTICS:
            torch.testing.assert_close(tiled[name], whole[name], rtol=1e-12, atol=1e-12)
            alone = statistics(student, teacher, [name], token_id_N=token_id_N, **SETTINGS)
            torch.testing.assert_close(alone[name], whole[name], rtol=0, atol=0)


def test_no_rows_give_empty_columns():
    student, teacher = random_states(0, 4, 11, seed=1), random_states(0, 6, 11, seed=2)
    assert {name: column.shape for name, column in statistics(student, teacher).items()} == {
        name: (0,) for name in STATISTICS
    }


def test_bf16_statistics_are_kept_in_float32():
    logits = torch.randn(3, 5)
    found = statistics(states(logits, torch.bfloat16), states(logits, torch.bfloat16))
    assert {column.dtype for column in found.values()} == {torch.float32}


@pytest.mark.parametrize("name", STATISTICS)
def test_a_missing_teacher_is_refused_exactly_where_it_is_needed(name):
    student, _ = random_pair()
    if name in NEEDS_TEACHER:
        with pytest.raises(ValueError, match="needs a teacher"):
            statistics(student, None, [name])
    else:
        assert len(statistics(student, None, [name])[name]) == len(student)


def test_an_unknown_statistic_is_refused_by_name():
    with pytest.raises(KeyError, match="surprise"):
        statistics(*random_pair(), ["surprise"])
