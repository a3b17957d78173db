"""Ranks, and the student under DeepSpeed: the only file that starts accelerate and makes process groups.

`Ranks` counts and gathers; `Trainer` holds the sharded student and is the one place where a gradient becomes a step.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

PATIENCE = timedelta(hours=2)
"""How long ranks wait for one that samples long rollouts or writes a large model; a launcher sees dead ones itself.

DeepSpeed's own groups keep the backend's default, which is less."""


class Ranks:
    """The ranks of a run; alone, every collective is the identity.

    ranks     0  1  2  3        sequence_parallel_size 2
    data      0  0  1  1        neighbours are one data rank: the same micro-batches
    piece     0  1  0  1        of whose sequences each holds one piece of `pieces`
    """

    def __init__(self, device: torch.device | str = "cpu", sequence_parallel_size: int = 1) -> None:
        self.initialized = dist.is_available() and dist.is_initialized()
        self.index = dist.get_rank() if self.initialized else 0
        self.count = dist.get_world_size() if self.initialized else 1
        self.device = torch.device(device)
        self.pieces = sequence_parallel_size if self.initialized else 1
        self.sequence_group = dist.new_subgroups(self.pieces, timeout=PATIENCE)[0] if self.pieces > 1 else None

    @property
    def piece(self) -> int:
        """Which piece of its sequences this rank holds."""
        return self.index % self.pieces

    @property
    def data_index(self) -> int:
        """The data rank that this rank is part of."""
        return self.index // self.pieces

    @property
    def data_count(self) -> int:
        """R, the number of data ranks."""
        return self.count // self.pieces

    @property
    def is_main(self) -> bool:
        """Whether this rank writes and prints."""
        return self.index == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """The element-wise sum over all ranks, on the CPU and the same on each."""
        if self.count == 1:
            return tensor.cpu()
        return self._sum(tensor, None)

    def sum_pieces(self, tensor: Tensor) -> Tensor:
        """The element-wise sum over the ranks that share sequences with this one, on the CPU and the same on each."""
        return tensor.cpu() if self.pieces == 1 else self._sum(tensor, self.sequence_group)

    def _sum(self, tensor: Tensor, group: Any) -> Tensor:
        total = tensor.to(self.device, copy=True)
        dist.all_reduce(total, group=group)
        return total.cpu()

    def agree(self, flag: bool) -> bool:
        """Whether the flag holds on every rank."""
        return int(self.sum(torch.tensor(int(flag)))) == self.count

    def gather_objects(self, item: Any) -> list[Any]:
        """Every rank's item, in order of rank."""
        if self.count == 1:
            return [item]
        items = [None] * self.count
        dist.all_gather_object(items, item)
        return items

    def from_main(self, item: Any) -> Any:
        """Rank 0's item."""
        return self.gather_objects(item if self.is_main else None)[0]

    def barrier(self) -> None:
        """Wait for every rank."""
        self.agree(True)


@dataclass(frozen=True)
class Update:
    """What became of a step: whether it was skipped, and the gradient's global norm before clipping."""

    skipped: bool
    grad_norm: float


class Trainer:
    """The student under DeepSpeed: called like the student, with `backward` and `update` for its gradient."""

    def __init__(self, accelerator: Any, student: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.accelerator = accelerator
        self.student = student
        self._finite = True
        self._trains_all = all(parameter.requires_grad for parameter in student.parameters())
        student.register_state_dict_post_hook(_drop_frozen)
        for parameter in student.parameters():
            if parameter.requires_grad:
                parameter.register_hook(self._watch)
        self.engine, _ = accelerator.prepare(student, optimizer)
        if self.zero_stage == 0:  # in bf16 DeepSpeed's start-up steps once, and Adam's bias corrections would run ahead
            optimizer.state.clear()
        self.ranks = Ranks(accelerator.device)
        if self.ranks.count == 1 and _adds_up_by_itself(self.engine.optimizer):
            self.engine.enable_backward_allreduce = False  # it would copy the whole gradient twice for nothing

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.engine(*args, **kwargs)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add a micro-batch's gradient; every rank calls it as often, `last` on the step's final one.

        DeepSpeed averages over all ranks, those that share sequences too, and each one's loss is of its own tokens and
        already divided by global counts: their sum is the step's, so it is multiplied by the number of ranks.
        """
        self._watch(loss.detach())
        self.engine.set_gradient_accumulation_boundary(is_boundary=last)
        self.engine.backward(loss * self.ranks.count)

    def update(self, lr: float, *, idle: bool = False) -> Update:
        """One optimizer step at this learning rate, or none on any rank if a loss or gradient was not finite on one.

        idle: nothing was trained on, and Adam's momentum and weight decay are not to move weights by themselves.
        """
        finite, self._finite = self.ranks.agree(bool(self._finite)), True
        if idle or not finite:
            self._discard_gradient()
            return Update(skipped=True, grad_norm=float("nan"))
        for group in self.engine.optimizer.param_groups:
            group["lr"] = lr
        whole = [p.grad for p in self.student.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(whole)
        self.engine.step()
        sharded = self.engine.get_global_grad_norm()
        return Update(not self.engine.was_step_applied(), grad_norm=float(norm if sharded is None else sharded))

    def _discard_gradient(self) -> None:
        optimizer = self.engine.optimizer
        optimizer.zero_grad()
        # ZeRO holds reduced gradients of its own, which zero_grad leaves and the next step would take for its own.
        for held in ("averaged_gradients", "all_grad_tensors"):
            getattr(optimizer, held, {}).clear()
        if self.zero_stage in (1, 2):
            optimizer.micro_step_id = -1  # its step resets this; an offloaded optimizer would add to the old gradient
            if getattr(optimizer, "cpu_offload", False):
                optimizer.reset_cpu_buffers()  # in bf16 it remembers the overflow, and would skip the next step too

    @property
    def zero_stage(self) -> int:
        """DeepSpeed's ZeRO stage, 0 to 3."""
        return self.engine.zero_optimization_stage()

    def save(self, folder: Path) -> None:
        """Write what trains, optimizer and random state; collective. Frozen weights are in the student's model."""
        self.accelerator.save_state(str(folder), safe_serialization=True, exclude_frozen_parameters=True)

    def load(self, folder: Path) -> None:
        """Read what `save` wrote; collective."""
        self.accelerator.load_state(str(folder), load_module_strict=self._trains_all)

    def _watch(self, tensor: Tensor) -> None:
        self._finite = torch.isfinite(tensor.sum()) & self._finite


def _drop_frozen(module: nn.Module, state: dict[str, Any], *_: Any) -> None:
    """DeepSpeed's own exclusion goes by parameter, and would keep a tied weight under its second name."""
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if not parameter.requires_grad:
            state.pop(name, None)


def _adds_up_by_itself(optimizer: Any) -> bool:
    """Whether its fp32 gradient is whole after each backward, before any reduction over ranks."""
    from deepspeed.runtime.bf16_optimizer import BF16_Optimizer

    return isinstance(optimizer, BF16_Optimizer)


@contextmanager
def gathered(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Whole parameters inside, whatever ZeRO stage shards them; collective, read-only."""
    parameters = list(parameters)
    if not any(hasattr(p, "ds_id") for p in parameters):
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(parameters):
        yield


def whole_shape(parameter: nn.Parameter) -> torch.Size:
    """The shape of a parameter, of which a rank may hold a part."""
    return getattr(parameter, "ds_shape", parameter.shape)


def leave(ranks: Ranks, last: Callable[[], None] | None = None) -> None:
    """End a finished process; with several ranks at once, after all have come here and all is written.

    last: what rank 0 does then, for as long as it takes: no rank waits for it in a collective.
    About one in forty two-rank launches aborted in the libraries' own teardown ("terminate called without an active
    exception") after every step was right; leaving without that teardown is the cure.
    """
    if ranks.count > 1:
        ranks.barrier()
    if last is not None and ranks.is_main:
        last()
    if ranks.count > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
    if ranks.initialized:
        dist.destroy_process_group()


def is_main_process() -> bool:
    """Rank 0 according to the launcher, before any process group exists."""
    return int(os.environ.get("RANK", "0")) == 0


def device_type() -> str:
    """Where models compute: cuda where there is a GPU, else cpu."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def world_size() -> int:
    """Ranks according to the launcher, before any process group exists."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_world_size() -> int:
    """Ranks of this machine according to the launcher, before any process group exists."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", world_size()))


def start(precision: str, *, max_grad_norm: float, trackers: list[str], folder: Path | None = None) -> Any:
    """An Accelerator under DeepSpeed: the launcher's ZeRO stage, or stage 1 in one process without a launcher."""
    on_cuda = torch.cuda.is_available()
    if on_cuda:
        torch.backends.cuda.enable_cudnn_sdp(False)  # plans anew for each length; vLLM turns it off too
    else:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("MASTER_PORT", str(free_port()))
    os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "error")
    import logging

    logging.getLogger("DeepSpeed").setLevel(os.environ["DEEPSPEED_LOG_LEVEL"].upper())
    from accelerate import Accelerator, InitProcessGroupKwargs

    plugin = _plugin()
    plugin.deepspeed_config |= {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": max_grad_norm,
        "steps_per_print": 2**31,
        "timers": {"throughput": {"enabled": False}},  # would wait for a GPU before each forward
    }
    # DeepSpeed's own 5e8 numbers take 2 GB of a GPU and more while they are reduced.
    plugin.deepspeed_config["zero_optimization"].setdefault("reduce_bucket_size", 1 << 26)
    if precision == "bf16" and plugin.zero_stage > 0:
        # Micro-batches and ranks add up in fp32; stage 0 knows only the weights' own dtype.
        plugin.deepspeed_config |= {"data_types": {"grad_accum_dtype": "fp32"}, "communication_data_type": "fp32"}
        plugin.deepspeed_config["bf16"] = {"enabled": True, "immediate_grad_update": True}
    accelerator = Accelerator(
        deepspeed_plugin=plugin,
        mixed_precision="bf16" if precision == "bf16" else "no",
        kwargs_handlers=[InitProcessGroupKwargs(backend="nccl" if on_cuda else "gloo", timeout=PATIENCE)],
        log_with=trackers or None,
        project_dir=str(folder) if folder else None,
    )
    _shard_no_other_model()
    return accelerator


def zero_stage() -> int:
    """The ZeRO stage under which `start` would train."""
    stage = _plugin().zero_stage
    _shard_no_other_model()
    return stage


def offloads_optimizer() -> bool:
    """Whether DeepSpeed, as launched, keeps the optimizer's states in main memory."""
    zero = _plugin().deepspeed_config.get("zero_optimization", {})
    return zero.get("offload_optimizer", {}).get("device", "none") not in ("none", None)


def elsewhere() -> str:
    """The first way out for a setting of GPUs where there is none: a cluster's login node has a build for them."""
    return "ask on a node that has one (srun …), or " if torch.version.cuda else ""


def _plugin() -> Any:
    from accelerate import DeepSpeedPlugin

    launched = os.environ.get("ACCELERATE_USE_DEEPSPEED", "false") == "true"
    return DeepSpeedPlugin() if launched else DeepSpeedPlugin(zero_stage=1)


def _shard_no_other_model() -> None:
    """Else transformers would shard every model that is loaded from here on, the teacher's and the engine's too."""
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()


def free_port() -> int:
    """A port of this machine on which nobody listens now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
