"""Where rollouts come from: a file that reads as it was written, recorded steps, and the request to a live engine."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch

from opd.batch import Prompt, Rollout
from opd.distributed import Ranks
from opd.errors import DataError
from opd.rollout.engine import RolloutEngine, Sampling
from opd.rollout.files import read_rollouts, recorded_temperature, step_file, write_rollouts
from opd.rollout.settings import RolloutSettings
from opd.rollout.source import live, recorded
from opd.rollout.start import engine_type
from opd.rollout.transformers import draw, most_likely

ROLLOUTS = [
    Rollout([1, 15, 9, 4, 2], [False] * 3 + [True] * 2, [-0.1, -1.0 / 3], [3, 4], "stop", 0, {"answer": "é", "n": 1}),
    Rollout([1, 7], [False, False], [], [], "error", 1),
]


def test_a_file_reads_as_it_was_written(tmp_path: Path):
    path = tmp_path / "made" / "on" / "the way.jsonl"
    write_rollouts(path, ROLLOUTS)
    assert read_rollouts(path) == ROLLOUTS
    assert path.read_text().count("\n") == 2


def test_what_more_is_said_about_each_is_left_out_again(tmp_path: Path):
    path = tmp_path / "r.jsonl"
    write_rollouts(path, ROLLOUTS, [{"text": "a", "weights": [1, 0]}, {"text": ""}])
    assert [json.loads(line)["text"] for line in path.read_text().splitlines()] == ["a", ""]
    assert read_rollouts(path) == ROLLOUTS
    with pytest.raises(ValueError, match="zip"):
        write_rollouts(path, ROLLOUTS, [{}])


def test_a_file_says_at_which_temperature_it_was_sampled_or_nothing(tmp_path: Path):
    path = tmp_path / "r.jsonl"
    write_rollouts(path, ROLLOUTS, [{"temperature": 0.7}] * 2)
    assert recorded_temperature(path) == 0.7 and read_rollouts(path) == ROLLOUTS
    write_rollouts(path, ROLLOUTS)
    assert recorded_temperature(path) is None
    path.write_text("")
    assert recorded_temperature(path) is None


def test_recorded_steps_are_read_one_by_one(tmp_path: Path):
    for step in range(2):
        write_rollouts(step_file(tmp_path, step), ROLLOUTS[step : step + 1])
    assert step_file(tmp_path, 0).name == "step-000001.jsonl"
    source = recorded(tmp_path)
    settings = RolloutSettings(type="recorded", path=str(tmp_path))
    assert [source(settings, step) for step in (0, 1, 0)] == [ROLLOUTS[:1], ROLLOUTS[1:], ROLLOUTS[:1]]
    with pytest.raises(DataError, match=r"no recorded rollouts at '.*step-000003.jsonl'; record as many"):
        source(settings, 2)


class Engine(RolloutEngine):
    """Remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__(Ranks())
        self.asked: list[tuple[list[Prompt], Sampling]] = []

    def generate(self, prompts, sampling):
        self.asked.append((prompts, sampling))
        return ROLLOUTS


@pytest.mark.parametrize(("seeded", "key"), [(True, ("rollout", 7, 3)), (False, None)])
def test_a_live_step_asks_for_its_prompts_keyed_by_run_and_step(seeded, key):
    engine, prompts = Engine(), {3: [Prompt(0, [1])]}
    settings = RolloutSettings(samples_per_prompt=5, max_new_tokens=9, temperature=0.7, seeded=seeded)
    source = live(engine, prompts.__getitem__, seed=7)
    assert source(settings, 3) == ROLLOUTS
    assert engine.asked == [(prompts[3], Sampling(5, 9, 0.7, key))]


def test_auto_takes_vllm_where_it_is_installed(monkeypatch):
    for found, engine in ((object(), "vllm"), (None, "transformers")):
        monkeypatch.setattr("importlib.util.find_spec", lambda name, found=found: found)
        assert engine_type(RolloutSettings()) == engine
        assert engine_type(RolloutSettings(type="vllm")) == "vllm"
        assert engine_type(RolloutSettings(type="recorded", path="r")) == engine, "evaluations still need one"


def generators(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(i) for i in range(count)]


def test_a_draw_follows_the_distribution_at_its_temperature():
    logits_V = torch.tensor([0.0, 1.0, 2.0, -torch.inf])
    token_B, logprob_B = draw(logits_V.expand(6000, 4), Sampling(1, 1, 2.0), generators(6000))
    p_V = torch.softmax(logits_V / 2.0, -1)
    counts = Counter(token_B.tolist())
    for token in range(4):
        assert counts[token] / 6000 == pytest.approx(p_V[token].item(), abs=0.03)
    torch.testing.assert_close(logprob_B, p_V.log()[token_B])


def test_temperature_0_is_greedy_and_a_draw_is_its_generators_own():
    logits_BV = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    assert draw(logits_BV, Sampling(1, 1, 0.0), generators(8))[0].tolist() == logits_BV.argmax(-1).tolist()
    together = draw(logits_BV, Sampling(1, 1, 1.0), generators(8))[0]
    alone = [draw(logits_BV[i : i + 1], Sampling(1, 1, 1.0), generators(8)[i : i + 1])[0].item() for i in range(8)]
    assert together.tolist() == alone


@pytest.mark.parametrize(
    "kept, top",
    [
        ([0, 1, 2, 3], {}),
        ([0, 2], {"top_k": 2}),
        ([0, 2], {"top_p": 0.7}),
        ([0, 2, 3], {"top_p": 0.71}),
        ([0], {"top_p": 0.01}),
        ([0], {"top_p": 0.55, "top_k": 2}),
        ([0, 2], {"top_p": 0.7, "top_k": 3}),
    ],
)
def test_top_p_and_top_k_leave_the_likeliest_tokens_renormalised(kept, top):
    """p = .5 .1 .2 .2 (of equals the earlier first); top p is of what top k leaves."""
    p_V = torch.tensor([0.5, 0.1, 0.2, 0.2], dtype=torch.float64)
    expected_V = torch.zeros(4, dtype=torch.float64)
    expected_V[kept] = p_V[kept] / p_V[kept].sum()
    got_V = most_likely(p_V.log()[None], Sampling(1, 1, 1.0, **top))[0].exp()
    torch.testing.assert_close(got_V, expected_V)
    token_B, logprob_B = draw(p_V.log().float().expand(400, 4), Sampling(1, 1, 1.0, **top), generators(400))
    assert set(token_B.tolist()) <= set(kept)
    torch.testing.assert_close(logprob_B.double(), expected_V.log()[token_B], rtol=1e-5, atol=1e-6)
