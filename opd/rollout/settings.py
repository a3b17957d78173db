"""The recipe's `rollout:` section."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from opd.record import Record, scheduled

EngineName = Literal["auto", "vllm", "transformers"]
"""What samples; auto takes vllm where it is installed, else transformers."""


class RolloutSettings(Record):
    """How the student samples: engine, length, temperature. Whole distributions only: no top-p, no top-k."""

    type: Literal[EngineName, "recorded"] = "auto"
    """auto takes vllm where it is installed, else transformers, and says so; recorded reads `path`."""
    path: str | None = None
    """Folder of recorded rollouts (`rollouts/` of another run), for type recorded."""
    samples_per_prompt: PositiveInt = 16
    """Rollouts of one prompt, G."""
    max_new_tokens: PositiveInt = 1024
    """A rollout is cut off here, and counted as truncated."""
    temperature: scheduled(PositiveFloat) = 1.0
    """The sampler's temperature; or a ramp."""
    seeded: bool = True
    """A seed a rollout, keyed by run seed, step, prompt and sample; false draws from the engine's own stream."""
    kv_cache_mib: PositiveInt = 256
    """vLLM's key-value cache on a CPU, in MiB a rank."""
    gpu_memory_share: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """vLLM's share of a GPU beside the trainer."""
    sleep: bool = True
    """Free vLLM's GPU memory while the trainer works."""
    sleep_level: Literal[1, 2] = 1
    """1 keeps sleeping weights in main memory, 2 drops them: the trainer's stream in anew before each sampling."""
    tensor_parallel: PositiveInt = 1
    """So many neighbouring ranks of a machine hold one vLLM engine together, each with its part of every matrix."""

    @model_validator(mode="after")
    def _path_only_where_read(self) -> RolloutSettings:
        if (self.type == "recorded") != (self.path is not None):
            raise ValueError(
                "'path' (a folder of recorded rollouts) and type recorded go together: give both or neither"
            )
        return self

    @model_validator(mode="after")
    def _level_of_a_sleep(self) -> RolloutSettings:
        if not self.sleep and self.sleep_level != 1:
            raise ValueError("'sleep_level' has no effect without 'sleep'; remove it, or set sleep: true")
        return self

    @property
    def alone(self) -> RolloutSettings:
        """The same for an engine that has its GPU for itself: most of it, and no sleep."""
        return self.model_copy(update={"gpu_memory_share": 0.85, "sleep": False, "sleep_level": 1})

    @property
    def for_gpu(self) -> list[str]:
        """The settings that were changed and that only vLLM on a GPU reads."""
        return self._changed("gpu_memory_share", "sleep", "sleep_level")

    @property
    def for_cpu(self) -> list[str]:
        """The settings that were changed and that only vLLM on a CPU reads."""
        return self._changed("kv_cache_mib")

    @property
    def for_vllm(self) -> list[str]:
        """The settings that were changed and that only vLLM reads."""
        return self._changed("tensor_parallel") + self.for_cpu + self.for_gpu

    def _changed(self, *names: str) -> list[str]:
        fields = type(self).model_fields
        return [name for name in names if getattr(self, name) != fields[name].default]
