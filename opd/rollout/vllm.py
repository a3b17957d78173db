"""Rollouts by vLLM, in this process: on a CPU, or colocated with the trainer on a GPU."""

from __future__ import annotations

import gc
import os

import torch

from opd.distributed import Ranks
from opd.errors import EngineError
from opd.models import as_stored, load_config
from opd.rollout.engine import Completion, Request, RolloutEngine, Sampling, Weights
from opd.rollout.settings import RolloutSettings


class VLLMEngine(RolloutEngine):
    """One vLLM engine a rank. `model` is a folder or hub id; `max_tokens` bounds prompt and completion together."""

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
        super().__init__(ranks)
        _environment()
        self.stop, self.config = stop, load_config(model, revision)
        self.sleeps = settings.sleep and torch.cuda.is_available()
        try:
            from vllm import LLM

            if ranks.initialized:
                _keep_process_group()
            self.llm = LLM(
                model,
                revision=revision,
                dtype=str(dtype).removeprefix("torch."),
                max_model_len=max_tokens,
                logprobs_mode="processed_logprobs",
                seed=seed % 2**31,
                distributed_executor_backend="external_launcher" if ranks.initialized else None,
                disable_log_stats=True,
                use_tqdm_on_load=False,
                **_device_settings(settings, max_tokens),
            )
        except Exception as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise EngineError(
                f"vLLM can't start ({reason}); try rollout.type=transformers, or run `opd doctor`"
            ) from error
        self._rest()

    def sample(self, requests: list[Request], sampling: Sampling) -> list[Completion]:
        from vllm import SamplingParams

        self._wake()
        self.llm.reset_prefix_cache()  # of other weights, or of other prompts: what is sampled must not depend on it
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
        self._wake()
        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": as_stored(self.config, weights)})
        if not torch.cuda.is_available() and self.llm.model_config.hf_text_config.tie_word_embeddings:
            self.llm.apply_model(_repack_head)
        self.version = version
        self._rest()

    def close(self) -> None:
        self.llm.llm_engine.engine_core.shutdown()
        del self.llm
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _wake(self) -> None:
        if self.sleeps:
            torch.cuda.empty_cache()  # what the trainer let go is the engine's now
            self.llm.wake_up()

    def _rest(self) -> None:
        if self.sleeps:
            self.llm.sleep(level=1)


def _completion(output) -> Completion:
    ids = list(output.token_ids)
    logprobs = [entry[token].logprob for token, entry in zip(ids, output.logprobs or [], strict=True)]
    return Completion(ids, logprobs, output.finish_reason if output.finish_reason in ("stop", "length") else "error")


def _repack_head(model: torch.nn.Module) -> None:
    """A tied head gets no weight of its own on reload, and the CPU computes with a packed copy: pack it anew."""
    if (head := getattr(model, "lm_head", None)) is not None:  # Gemma 2's head is its embedding itself
        head.quant_method.process_weights_after_loading(head)


def _keep_process_group() -> None:
    """Closing an engine must not destroy the process group: it is the trainer's, not vLLM's."""
    import vllm.v1.engine.core

    vllm.v1.engine.core.cleanup_dist_env_and_memory = gc.collect


def _environment() -> None:
    """vLLM's settings that exist only as variables; each leaves a user's own value alone."""
    for name, value in {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
    }.items():
        os.environ.setdefault(name, value)


def _device_settings(settings: RolloutSettings, max_tokens: int) -> dict:
    if torch.cuda.is_available():
        return {"gpu_memory_utilization": settings.gpu_memory_share, "enable_sleep_mode": settings.sleep}
    return {
        "kv_cache_memory_bytes": settings.kv_cache_mib << 20,
        "enforce_eager": True,
        # A prompt that is read in parts has its seeded generator turned back, which a CPU's can't do.
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(4096, max_tokens),
    }
