"""Rollouts by vLLM, in this process: on a CPU, or colocated with the trainer on a GPU."""

from __future__ import annotations

import gc
import logging
import os
import warnings
from functools import cached_property

import numpy as np
import torch
from transformers import PreTrainedModel

from opd.distributed import Ranks
from opd.errors import EngineError, reason_of
from opd.models import as_stored, stored_model
from opd.rollout.engine import Completion, Request, RolloutEngine, Sampling, Weights
from opd.rollout.settings import RolloutSettings
from opd.seeds import seed_for

WEIGHTS, CACHE = "weights", "kv_cache"
"""vLLM's names of what sleeps."""


class VLLMEngine(RolloutEngine):
    """One vLLM engine a rank, or over `tensor_parallel` neighbours, all of which see the same requests.

    `model` is a folder or hub id; `max_tokens` bounds prompt and completion together. On a GPU it sleeps while the
    trainer works: at level 1 with its weights in main memory, at level 2 without; then `load` only notes the version,
    and the next sampling streams in what `follow` named. Until that was called, it keeps to level 1. Its CUDA graphs
    stay on the card.
    """

    def __init__(
        self,
        model: str,
        settings: RolloutSettings,
        ranks: Ranks,
        *,
        dtype: torch.dtype,
        max_tokens: int,
        stop: list[int],
        seed: int = 0,
        revision: str | None = None,
    ) -> None:
        super().__init__(ranks, settings.tensor_parallel if ranks.initialized else 1)
        _environment()
        self.stop, self.model, self.revision = stop, model, revision
        self.seed, self.calls = seed, 0
        self.sleep_level = settings.sleep_level if settings.sleep and torch.cuda.is_available() else 0
        self.asleep: set[str] = set()
        self.is_empty = False
        try:
            from vllm import LLM

            if ranks.initialized:
                _keep_process_group()
            if self.ranks_per_engine > 1 and not torch.cuda.is_available():
                _speak_by_gloo()
            self.llm = LLM(
                model,
                revision=revision,
                dtype=str(dtype).removeprefix("torch."),
                max_model_len=max_tokens,
                logprobs_mode="processed_logprobs",
                seed=seed % 2**31,
                distributed_executor_backend="external_launcher" if ranks.initialized else None,
                tensor_parallel_size=self.ranks_per_engine,
                disable_log_stats=True,
                use_tqdm_on_load=False,
                **_device_settings(settings, max_tokens),
            )
        except Exception as error:
            raise EngineError(
                f"vLLM can't start ({reason_of(error)}); try rollout.type=transformers, or run `opd doctor`"
            ) from error
        _heed_reloads()
        self._rest()

    def sample(self, requests: list[Request], sampling: Sampling) -> list[Completion]:
        from vllm import SamplingParams

        if self.is_empty:
            self._fill(self.weights_of())
        self._wake(WEIGHTS, CACHE)
        if self.ranks_per_engine > 1:  # each rank draws for itself what all must draw alike
            self.ranks.barrier()  # the trainer's NCCL traffic ends before the engine's begins (trl issue 3671)
            self.calls += 1
            draws = seed_for("draws", self.seed, self.version, self.calls)
            torch.manual_seed(draws)
            np.random.seed(draws % 2**32)  # vLLM's runner V2, the default on CUDA, seeds requests without a seed by it
        if not self.llm.reset_prefix_cache():  # of other weights or prompts: what is sampled must not depend on it
            raise EngineError(
                "vLLM kept its prefix cache of other weights; take rollout.type=transformers, and report it"
            )
        prompts = [{"prompt_token_ids": request.prompt.token_ids} for request in requests]
        params = [
            SamplingParams(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                max_tokens=sampling.max_new_tokens,
                logprobs=0,
                seed=request.seed,
                stop_token_ids=self.stop,
                detokenize=False,
            )
            for request in requests
        ]
        outputs = self.llm.generate(prompts, params, use_tqdm=False) if prompts else []
        self._rest()
        return [_completion(output.outputs[0]) for output in outputs]

    def load(self, weights: Weights, version: int) -> None:
        self.version = version
        if not self.is_empty:
            self._fill(weights)
            self._rest()

    @property
    def alters_transformers(self) -> bool:
        return any(self.llm.apply_model(_is_transformers_own))

    @cached_property
    def stored(self) -> PreTrainedModel:
        """What knows the weights' names; only what takes new weights needs one that transformers reads."""
        return stored_model(self.model, self.revision)

    def close(self) -> None:
        self._wake(WEIGHTS, CACHE)  # of what is freed asleep, vLLM would give memory back twice (its issue 36651)
        self.llm.llm_engine.engine_core.shutdown()
        del self.llm
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _fill(self, weights: Weights) -> None:
        self._wake(WEIGHTS)
        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": as_stored(self.stored, weights)})
        if not torch.cuda.is_available() and self.llm.model_config.hf_text_config.tie_word_embeddings:
            self.llm.apply_model(_repack_head)
        self.is_empty = False

    def _wake(self, *parts: str) -> None:
        if waking := [part for part in parts if part in self.asleep]:
            torch.cuda.empty_cache()  # what the trainer let go is the engine's now
            try:
                self.llm.wake_up(tags=waking)
            except RuntimeError as error:
                raise EngineError(
                    f"vLLM can't wake beside the trainer ({reason_of(error)}); lower rollout.gpu_memory_share"
                ) from error
            self.asleep -= set(waking)
            if self.sleep_level == 2:
                torch.accelerator.empty_host_cache()  # pinned memory of the first sleep, which was of level 1

    def _rest(self) -> None:
        if self.sleep_level:
            self.is_empty = self.sleep_level == 2 and self.weights_of is not None
            self.llm.sleep(level=2 if self.is_empty else 1)
            self.asleep = {WEIGHTS, CACHE}


def _completion(output) -> Completion:
    ids = list(output.token_ids)
    logprobs = [entry[token].logprob for token, entry in zip(ids, output.logprobs or [], strict=True)]
    return Completion(ids, logprobs, output.finish_reason if output.finish_reason in ("stop", "length") else "error")


def _is_transformers_own(model: torch.nn.Module) -> bool:
    return type(model).__module__.startswith("vllm.model_executor.models.transformers")


def _repack_head(model: torch.nn.Module) -> None:
    """A tied head gets no weight of its own on reload, and the CPU computes with a packed copy: pack it anew."""
    if (head := getattr(model, "lm_head", None)) is not None:  # Gemma 2's head is its embedding itself
        head.quant_method.process_weights_after_loading(head)


def _keep_process_group() -> None:
    """Closing an engine gives up vLLM's own groups, but not the process group: it is the trainer's."""
    import vllm.v1.engine.core
    from vllm.distributed.parallel_state import destroy_model_parallel

    def clean() -> None:
        destroy_model_parallel()
        gc.collect()
        if torch.cuda.is_available():
            torch.accelerator.empty_host_cache()

    vllm.v1.engine.core.cleanup_dist_env_and_memory = clean


class _Heed(logging.Handler):
    """Says what vLLM only logs, below the level that it logs at here: weights that a reload left as they were."""

    def emit(self, record: logging.LogRecord) -> None:
        warnings.warn(f"vLLM: {record.getMessage()[:300]}", stacklevel=2)


def _heed_reloads() -> None:
    """Once vLLM has started, which sets up its loggers anew."""
    logger = logging.getLogger("vllm.model_executor.model_loader.reload.inplace")
    logger.setLevel(logging.WARNING)
    logger.handlers = [_Heed()]


def _speak_by_gloo() -> None:
    """On a CPU, vLLM's shared memory has one name for all jobs of a machine, and outlives a process that just ends."""
    from vllm.distributed.device_communicators.cpu_communicator import CpuCommunicator

    CpuCommunicator._all_group_ranks_share_shm_group_name = lambda self: False


def _environment() -> None:
    """vLLM's settings that exist only as variables; each leaves a user's own value alone."""
    for name, value in {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_USE_FLASHINFER_SAMPLER": "0",  # needs nvcc, for top-p and top-k that training never asks
    }.items():
        os.environ.setdefault(name, value)


def _device_settings(settings: RolloutSettings, max_tokens: int) -> dict:
    if torch.cuda.is_available():
        return {
            "gpu_memory_utilization": settings.gpu_memory_share,
            "enable_sleep_mode": settings.sleep,
            # vLLM's own 1,024 on a large card cost a table of counts a request and token, which sleeps and wakes too.
            "max_num_seqs": 256,
            "hf_overrides": {"head_dtype": "float32"},  # as the trainer's logits: in bf16 they lie 0.125 apart at 16
        }
    return {
        "kv_cache_memory_bytes": settings.kv_cache_mib << 20,
        "enforce_eager": True,
        # A prompt that is read in parts has its seeded generator turned back, which a CPU's can't do.
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(4096, max_tokens),
    }
