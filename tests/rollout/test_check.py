"""What is refused before an engine starts, of models and cards."""

from types import SimpleNamespace

import pytest
import torch
from transformers import Gemma4TextConfig, MambaConfig

from opd.errors import EngineError, RecipeError
from opd.rollout.check import check_experts, check_room, check_tensor_parallel
from opd.rollout.settings import RolloutSettings
from tests.test_architectures import FAMILIES

VLLM = RolloutSettings(type="vllm")
GEMMA4 = FAMILIES["gemma4"].to_dict()
EXPERTS = Gemma4TextConfig(
    **GEMMA4 | dict(enable_moe_block=True, num_experts=4, top_k_experts=2, moe_intermediate_size=8)
)


@pytest.mark.parametrize("config", [EXPERTS, FAMILIES["mixtral"], FAMILIES["glm4-moe"]], ids=lambda c: c.model_type)
def test_experts_whatever_their_settings_are_called_are_refused_on_a_cpu(config, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(EngineError, match=r"'m' is a mixture of experts.*rollout\.type=transformers"):
        check_experts(VLLM, config, "m")
    check_experts(VLLM, FAMILIES["gemma4"], "m")
    check_experts(RolloutSettings(type="transformers"), config, "m")


def test_a_model_without_attention_is_not_cut(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("opd.rollout.check.local_world_size", lambda: 2)
    with pytest.raises(RecipeError, match=r"'m' has no attention heads to cut; set rollout\.tensor_parallel to 1"):
        check_tensor_parallel(RolloutSettings(tensor_parallel=2), MambaConfig(num_hidden_layers=2), "m")


def test_a_teacher_that_fits_no_engine_of_its_own_is_refused(monkeypatch: pytest.MonkeyPatch):
    """A 70B one in parts under ZeRO-3 trains on eight GPUs, and eight whole copies would be started to score it."""
    teacher, bytes_ = FAMILIES["llama"], 12_000
    monkeypatch.setattr("opd.rollout.check.LEAST_CACHE", 2000)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=bytes_))
    with pytest.raises(
        EngineError, match=r"an engine of 't', .*evaluate\.teacher=false, or raise rollout\.tensor_parallel"
    ):
        check_room(VLLM, teacher, "t", torch.bfloat16)
    check_room(RolloutSettings(type="vllm", tensor_parallel=8), teacher, "t", torch.bfloat16)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    check_room(VLLM, teacher, "t", torch.bfloat16)
