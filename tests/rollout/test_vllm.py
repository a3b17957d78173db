"""What the engine tells vLLM, with a stand-in for its LLM: weights by their stored names, sleep and waking."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from opd.batch import Prompt
from opd.distributed import Ranks
from opd.errors import EngineError
from opd.models import empty_model
from opd.rollout.engine import Request, Sampling
from opd.rollout.settings import RolloutSettings
from opd.rollout.vllm import VLLMEngine
from tests.test_architectures import FAMILIES, made

GREEDY = Sampling(1, 4, 0.0)
HOST: list[str] = []
"""What became of pinned memory."""


class Told:
    """Stands for vLLM's LLM on a GPU: notes what it was told, and fails where a real one would."""

    def __init__(self, model: str, **settings: Any) -> None:
        self.settings = settings
        self.said: list[str] = []
        self.handed: list[str] = []
        self.there, self.lost = {"weights", "kv_cache"}, False
        self.is_full = self.is_busy = False
        self.model_config = SimpleNamespace(hf_text_config=FAMILIES[model])

    def sleep(self, level: int) -> None:
        self.said.append(f"sleep {level}")
        self.there, self.lost = set(), level == 2

    def wake_up(self, tags: list[str]) -> None:
        if self.is_full:
            raise RuntimeError("CUDA Error: out of memory")
        assert not set(tags) & self.there, "vLLM would leave the others asleep"
        self.there |= set(tags)
        self.said.append(f"wake {' '.join(tags)}")

    def collective_rpc(self, method: str, kwargs: dict[str, Any]) -> None:
        assert method == "reload_weights" and "weights" in self.there, "written into memory that is not there"
        self.handed = [name for name, _ in kwargs["weights_iterator"]]
        self.lost = False
        self.said.append("reload")

    def reset_prefix_cache(self) -> bool:
        return not self.is_busy

    def generate(self, prompts: list[Any], params: list[Any], use_tqdm: bool) -> list[Any]:
        assert self.there == {"weights", "kv_cache"} and not self.lost, "sampled without weights"
        self.said.append("generate")
        said = SimpleNamespace(token_ids=[2], logprobs=[{2: SimpleNamespace(logprob=-1.0)}], finish_reason="stop")
        return [SimpleNamespace(outputs=[said]) for _ in prompts]


def engine_at(level: int, family: str = "llama", **settings: Any) -> VLLMEngine:
    """An engine that has just started and rests: on a CPU at level 0, else on a GPU."""
    torch.cuda.is_available = lambda: level > 0
    chosen = RolloutSettings(sleep_level=max(1, level), **settings)
    return VLLMEngine(family, chosen, Ranks(), dtype=torch.bfloat16, max_tokens=100, stop=[2], seed=7)


def told(engine: VLLMEngine) -> list[str]:
    """What was said since the last look."""
    said, engine.llm.said = engine.llm.said, []
    return said


@pytest.fixture(autouse=True)
def parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's own import takes seconds, and pinned memory needs a GPU."""
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(SamplingParams=dict, LLM=Told))
    monkeypatch.setattr("opd.rollout.vllm.stored_model", lambda model, revision: empty_model(FAMILIES[model]))
    monkeypatch.setattr(torch.cuda, "is_available", torch.cuda.is_available)  # put back after `engine_at`
    monkeypatch.setattr(torch.accelerator, "empty_host_cache", lambda: HOST.append("emptied"))


def test_vllm_is_handed_what_a_checkpoint_holds():
    """Experts one by one, where the model in memory has them fused."""
    engine = engine_at(0, "mixtral")
    engine.load(made("mixtral", 0).named_parameters(), 1)
    handed = engine.llm.handed
    assert sum("experts.3" in name for name in handed) == 2 * 3 and not any("gate_up" in name for name in handed)
    assert told(engine) == ["reload"], "on a CPU nothing sleeps"


def test_at_level_1_only_weights_wake_for_new_ones():
    engine, request = engine_at(1), Request(Prompt(0, [1, 3]), 0, None)
    engine.follow(lambda: pytest.fail("its weights are in main memory"))
    assert told(engine) == ["sleep 1"]
    engine.load(made("llama", 0).named_parameters(), 1)
    assert told(engine) == ["wake weights", "reload", "sleep 1"] and engine.version == 1
    for _ in range(2):
        engine.sample([request], GREEDY)
        assert told(engine) == ["wake weights kv_cache", "generate", "sleep 1"]


def test_an_engine_that_may_not_sleep_never_does():
    engine, request = engine_at(1, sleep=False), Request(Prompt(0, [1, 3]), 0, None)
    assert engine.llm.settings["enable_sleep_mode"] is False
    engine.load(made("llama", 0).named_parameters(), 1)
    engine.sample([request], GREEDY)
    assert told(engine) == ["reload", "generate"]


def test_at_level_2_dropped_weights_come_anew_before_each_sampling():
    """Loaded weights are not streamed into an engine that would drop them: the next sampling takes the trainer's."""
    engine, request = engine_at(2), Request(Prompt(0, [1, 3]), 0, None)
    engine.sample([request], GREEDY)
    assert told(engine) == ["sleep 1", "wake weights kv_cache", "generate", "sleep 1"], "nobody could give them again"
    engine.follow(made("llama", 0).named_parameters)
    HOST.clear()
    engine.sample([request], GREEDY)
    assert told(engine) == ["wake weights kv_cache", "generate", "sleep 2"]
    assert HOST == ["emptied"], "the copy of the first sleep, which was of level 1, stays in pinned memory"
    engine.load(iter(()), 7)
    assert told(engine) == [] and engine.version == 7
    for _ in range(2):
        engine.llm.handed = []
        engine.sample([request], GREEDY)
        assert told(engine) == ["wake weights", "reload", "wake kv_cache", "generate", "sleep 2"]
        assert "model.embed_tokens.weight" in engine.llm.handed


@pytest.mark.parametrize("level", [1, 2])
def test_an_engine_is_awake_when_it_is_closed(level: int):
    """vLLM's allocator would give back a second time what is freed asleep, and the next engine could not start."""
    engine = engine_at(level)
    engine.follow(made("llama", 0).named_parameters)
    engine.sample([Request(Prompt(0, [1, 3]), 0, None)], GREEDY)
    llm = engine.llm
    llm.llm_engine = SimpleNamespace(engine_core=SimpleNamespace(shutdown=lambda: llm.said.append("shutdown")))
    engine.close()
    assert llm.said[-2:] == ["wake weights kv_cache", "shutdown"]


def test_a_card_that_is_too_full_to_wake_on_is_said_in_a_line():
    engine = engine_at(1)
    engine.llm.is_full = True
    with pytest.raises(EngineError, match=r"can't wake beside the trainer \(CUDA Error.*gpu_memory_share"):
        engine.sample([Request(Prompt(0, [1, 3]), 0, None)], GREEDY)


def test_nothing_is_sampled_from_a_cache_of_other_weights():
    engine = engine_at(0)
    engine.llm.is_busy = True
    with pytest.raises(EngineError, match="kept its prefix cache"):
        engine.sample([Request(Prompt(0, [1, 3]), 0, None)], GREEDY)
    assert told(engine) == []


ALIKE = {
    "revision": None,
    "dtype": "bfloat16",
    "max_model_len": 100,
    "logprobs_mode": "processed_logprobs",
    "seed": 7,
    "distributed_executor_backend": None,
    "tensor_parallel_size": 1,
    "disable_log_stats": True,
    "use_tqdm_on_load": False,
}


def test_on_a_gpu_logits_are_the_trainers_and_the_card_is_shared():
    assert engine_at(1, gpu_memory_share=0.4).llm.settings == ALIKE | {
        "gpu_memory_utilization": 0.4,
        "enable_sleep_mode": True,
        "max_num_seqs": 256,
        "hf_overrides": {"head_dtype": "float32"},
    }


def test_on_a_cpu_prompts_are_read_whole_and_the_cache_has_its_size():
    assert engine_at(0, kv_cache_mib=64).llm.settings == ALIKE | {
        "kv_cache_memory_bytes": 64 << 20,
        "enforce_eager": True,
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": 4096,
    }


def test_ranks_of_one_engine_draw_alike_by_torch_and_by_numpy():
    """vLLM's runner V2 takes the seed of a request that has none from numpy's own generator."""
    drawn = []
    for own in range(2):
        torch.manual_seed(own), np.random.seed(own)
        engine = engine_at(0)
        engine.ranks_per_engine = 2
        for _ in range(2):
            engine.sample([Request(Prompt(0, [1, 3]), 0, None)], GREEDY)
            drawn.append((int(np.random.randint(2**62)), float(torch.rand(()))))
        engine.load(made("llama", 0).named_parameters(), 3)
        engine.calls = 0  # as in a resumed run
        engine.sample([Request(Prompt(0, [1, 3]), 0, None)], GREEDY)
        drawn.append((int(np.random.randint(2**62)), float(torch.rand(()))))
    assert drawn[:3] == drawn[3:] and len(set(drawn)) == 3
