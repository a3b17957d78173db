"""Real engines: what they sample, what they say about it, and that they follow the trainer's weights."""

import warnings
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from opd.batch import Prompt, Rollout
from opd.distributed import Ranks
from opd.lora import LoraSettings, adapters, attach, plain_buffers
from opd.model_spec import ModelSettings
from opd.models import has_experts, load_model, load_tokenizer
from opd.prompts import render
from opd.rollout.engine import RolloutEngine, Sampling
from opd.rollout.settings import RolloutSettings
from opd.rollout.start import start_engine
from opd.rollout.vllm import VLLMEngine
from opd.student import Student
from tests.launching import EVERY_CASE
from tests.test_architectures import FAMILIES, WIDE

ENGINES = [pytest.param("vllm", marks=pytest.mark.engine), "transformers"]
SAMPLING = Sampling(samples=3, max_new_tokens=16, temperature=1.0, seed_key=("test", 0))


def start(kind: str, model: Path, stop: int) -> RolloutEngine:
    settings = RolloutSettings(type=kind, **({"kv_cache_mib": 64} if kind == "vllm" else {}))
    return start_engine(str(model), settings, Ranks(), dtype=torch.float32, max_tokens=64, stop=[stop])


@pytest.fixture(scope="module", params=ENGINES)
def engine(request: pytest.FixtureRequest, toy: Path):
    started = start(request.param, toy / "student", end_token(toy))
    yield started
    started.close()


@pytest.fixture(scope="module")
def tied(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy student with its lm_head tied to its embeddings."""
    folder = tmp_path_factory.mktemp("tied")
    config = AutoConfig.from_pretrained(toy / "student", tie_word_embeddings=True)
    torch.manual_seed(3)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    load_tokenizer(str(toy / "student")).save_pretrained(folder)
    return folder


def end_token(toy: Path) -> int:
    return load_tokenizer(str(toy / "student")).eos_token_id


def prompts(toy: Path, *questions: str) -> list[Prompt]:
    tokenizer = load_tokenizer(str(toy / "student"))
    return [Prompt(i, render(q, tokenizer), {"answer": "3"}) for i, q in enumerate(questions)]


def trainer_logprobs(model, rollout: Rollout, temperature: float = 1.0) -> torch.Tensor:
    """By plain transformers: log p of each trained token."""
    with torch.no_grad():
        logits = model(torch.tensor([rollout.token_ids])).logits[0].float() / temperature
    at = torch.tensor(rollout.positions)
    return logits.log_softmax(-1)[at - 1, torch.tensor(rollout.completion)]


def mean_gap(model, rollouts: list[Rollout], temperature: float = 1.0) -> float:
    gaps = [(trainer_logprobs(model, r, temperature) - torch.tensor(r.logprobs)).abs() for r in rollouts if r.length]
    return float(torch.cat(gaps).mean())


def test_rollouts_stand_in_order_and_carry_what_a_step_needs(engine: RolloutEngine, toy: Path):
    asked = prompts(toy, "1+2=", "30+4=", "555+66=")
    rollouts = engine.generate(asked, SAMPLING)
    assert [r.group for r in rollouts] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    for rollout in rollouts:
        prompt = asked[rollout.group]
        n = len(prompt.token_ids)
        assert rollout.token_ids[:n] == prompt.token_ids
        assert rollout.trained == [False] * n + [True] * rollout.length
        assert rollout.versions == [engine.version] * rollout.length
        assert rollout.extra == {"answer": "3"}
        ended = rollout.completion[-1] == end_token(toy)
        assert rollout.finish == ("stop" if ended else "length")
        assert ended or rollout.length == 16
    assert {r.finish for r in rollouts} <= {"stop", "length"}


def test_the_same_batch_gives_the_same_rollouts_and_another_seed_does_not(engine: RolloutEngine, toy: Path):
    asked = prompts(toy, "1+2=", "30+4=")
    first, second = engine.generate(asked, SAMPLING), engine.generate(asked, SAMPLING)
    assert first == second
    other = engine.generate(asked, Sampling(3, 16, 1.0, ("test", 1)))
    assert [r.token_ids for r in other] != [r.token_ids for r in first]
    assert len({tuple(r.completion) for r in first}) > 2, "samples of a prompt have seeds of their own"


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_sampler_log_probs_are_the_models_at_the_samplers_temperature(engine, toy: Path, temperature: float):
    model = load_model(str(toy / "student"), dtype=torch.float32)
    rollouts = engine.generate(prompts(toy, "1+2=", "30+4="), Sampling(4, 16, temperature, ("t",)))
    assert mean_gap(model, rollouts, temperature) < 1e-4
    assert mean_gap(model, rollouts, 2.0) > 1e-2


def test_greedy_takes_the_likeliest_token(engine: RolloutEngine, toy: Path):
    model = load_model(str(toy / "student"), dtype=torch.float32)
    (rollout,) = engine.generate(prompts(toy, "12+3="), Sampling(1, 8, 0.0))
    with torch.no_grad():
        best = model(torch.tensor([rollout.token_ids])).logits[0].argmax(-1)
    assert [int(best[p - 1]) for p in rollout.positions] == rollout.completion


def test_top_k_and_top_p_bound_what_is_sampled(engine: RolloutEngine, toy: Path):
    """The likeliest token alone is greedy, with log-prob 0; the log-probs are those of the tokens that are left."""
    asked = prompts(toy, "1+2=", "30+4=")
    greedy = [r.completion for r in engine.generate(asked, Sampling(1, 8, 0.0))]
    for top in ({"top_k": 1}, {"top_p": 1e-4}):
        alone = engine.generate(asked, Sampling(1, 8, 1.0, ("top",), **top))
        assert [r.completion for r in alone] == greedy and max(abs(p) for r in alone for p in r.logprobs) < 1e-4
    model = load_model(str(toy / "student"), dtype=torch.float32)
    for rollout in engine.generate(asked, Sampling(4, 8, 1.0, ("top",), top_k=3)):
        with torch.no_grad():
            logits = model(torch.tensor([rollout.token_ids])).logits[0]
        for position, token, logprob in zip(rollout.positions, rollout.completion, rollout.logprobs, strict=True):
            three = logits[position - 1].topk(3)
            assert token in three.indices
            assert logprob == pytest.approx(float(logits[position - 1, token] - three.values.logsumexp(0)), abs=1e-3)


def test_more_prompt_tokens_than_are_read_at_once_are_sampled_with_their_seeds(engine: RolloutEngine, toy: Path):
    """9,000 tokens of prompts in one call: no prompt may be read in parts, whose seeds a CPU can't turn back."""
    asked = prompts(toy, *(f"{n:040d}+7=" for n in range(200)))
    rollouts = engine.generate(asked, Sampling(1, 2, 1.0, ("many",)))
    assert [r.group for r in rollouts] == list(range(200)) and {r.finish for r in rollouts} <= {"stop", "length"}


def test_the_engine_follows_the_trainers_weights(engine: RolloutEngine, toy: Path):
    assert not engine.alters_transformers
    follows(engine, toy / "student", toy)


@pytest.mark.parametrize("kind", ENGINES)
def test_the_engine_follows_tied_weights(kind: str, tied: Path, toy: Path):
    engine = start(kind, tied, end_token(toy))
    follows(engine, tied, toy)
    engine.close()


@pytest.mark.parametrize("kind", ENGINES)
@pytest.mark.parametrize(
    "family",
    [
        pytest.param(family, marks=[] if family in ("gemma2", "gemma4", "qwen2", "qwen3") else EVERY_CASE)
        for family, config in FAMILIES.items()
        if not has_experts(config) and family not in ("qwen3.5", "smollm3")  # no engine of vLLM's own on a CPU
    ],
)
def test_the_engine_follows_a_model_with_more_than_weights(family: str, kind: str, toy: Path, tmp_path: Path):
    """Gemma 2's cap on attention, which sdpa does not know, and vLLM's model without lm_head; Gemma 4's buffers."""
    known = FAMILIES[family].to_dict() | WIDE | {"vocab_size": 17, "initializer_range": 0.1}
    known |= {key: 17 for key in known if key == "vocab_size_per_layer_input"}
    torch.manual_seed(3)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(**known)).save_pretrained(tmp_path)
    load_tokenizer(str(toy / "student")).save_pretrained(tmp_path)
    engine = start(kind, tmp_path, end_token(toy))
    follows(engine, tmp_path, toy)
    engine.close()


@pytest.mark.engine
@EVERY_CASE
def test_a_model_that_vllm_takes_from_transformers_is_not_trained_beside_it(toy: Path, tmp_path: Path):
    """vLLM decorates the class in place, and transformers then can't make another model of it."""
    known = FAMILIES["smollm3"].to_dict() | WIDE | {"vocab_size": 17}
    AutoModelForCausalLM.from_config(AutoConfig.for_model(**known)).save_pretrained(tmp_path)
    load_tokenizer(str(toy / "student")).save_pretrained(tmp_path)
    engine = start("vllm", tmp_path, end_token(toy))
    assert engine.alters_transformers
    engine.close()


def test_weights_that_vllm_was_not_given_are_said(engine: RolloutEngine, toy: Path):
    if not isinstance(engine, VLLMEngine):
        pytest.skip("the transformers engine copies what it is given, weight by weight")
    weights = dict(load_model(str(toy / "student"), dtype=torch.float32).named_parameters())
    with pytest.warns(UserWarning, match="vLLM: .*not loaded.*model.norm.weight"):
        engine.load((pair for pair in weights.items() if pair[0] != "model.norm.weight"), engine.version + 1)
    engine.load(iter(weights.items()), engine.version + 1)


def test_the_engine_samples_from_the_merged_model(engine: RolloutEngine, toy: Path):
    """Adapters on every layer and the head: the gap to peft's own model is the synced one, that to the base is not."""
    base, asked = load_model(str(toy / "student"), dtype=torch.float32), prompts(toy, "1+2=", "30+4=", "555+66=")
    engine.load(Student(adapted(toy), tokens=17).weights(), engine.version + 1)
    rollouts = engine.generate(asked, SAMPLING)
    engine.load(base.named_parameters(), engine.version + 1)
    assert mean_gap(adapted(toy), rollouts) < 1e-3
    assert mean_gap(base, rollouts) > 0.1


def adapted(toy: Path) -> PreTrainedModel:
    """The toy student with adapters that move its distributions far."""
    model = load_model(str(toy / "student"), dtype=torch.float32)
    attach(model, LoraSettings(targets=["all-linear", "lm_head"]), ModelSettings(model="student"), seed=0)
    torch.manual_seed(4)
    with torch.no_grad():
        for adapter in adapters(model).values():
            adapter.lora_B.normal_(0, 0.3)
    return model


def test_a_prompt_that_comes_twice_is_sampled_anew(engine: RolloutEngine, toy: Path):
    asked = prompts(toy, "1+2=")
    first, second = engine.generate(asked * 2, Sampling(1, 16, 1.0, ("twice",)))
    assert first.completion != second.completion


def follows(engine: RolloutEngine, path: Path, toy: Path) -> None:
    """Fails if `load` is skipped: weights are moved until that gap is ten times the synced one."""
    asked = prompts(toy, "1+2=", "30+4=", "555+66=")
    model = load_model(str(path), dtype=torch.float32)
    student = Student(load_model(str(path), dtype=torch.float32), tokens=17)
    synced = mean_gap(model, engine.generate(asked, SAMPLING))
    assert synced < 1e-3
    while (unsynced := mean_gap(model, engine.generate(asked, SAMPLING))) < max(10 * synced, 0.02):
        with torch.no_grad():
            for own, other in zip(student.model.parameters(), model.parameters(), strict=True):
                other.add_(0.02 * torch.randn_like(other))
                own.copy_(other)
            for who in (student.model, model):
                for buffer in plain_buffers(who).values():
                    buffer.mul_(0.9)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="vLLM: ")
        engine.load(student.weights(), engine.version + 1)
    rollouts = engine.generate(asked, SAMPLING)
    assert {v for r in rollouts for v in r.versions} == {engine.version}
    assert mean_gap(model, rollouts) < unsynced / 10
    assert mean_gap(model, rollouts) < 1e-3
