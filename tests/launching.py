"""Starting real ranks from tests, as `accelerate launch` does it, with a stage and a number of ranks."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import runpy
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from accelerate.utils.other import get_free_port
from torch.multiprocessing import ProcessContext, start_processes

ROOT = Path(__file__).parent.parent
IMPORTED = [
    "deepspeed.runtime.zero.muon.muon_optimizer",  # DeepSpeed imports it, and 650 modules with it, when it starts
    "opd.teacher.sharded",
    "recipes.quickstart.make_models",
    "tests.workers.pieces",
    "tests.workers.shards",
]
EVERY_CASE = pytest.mark.skipif(os.environ.get("EVERY_CASE") != "1", reason="EVERY_CASE=1 runs it: some minutes more")


def environment() -> dict[str, str]:
    """One thread a rank, no hub but one that HF_ENDPOINT names, and none of this process's own rank variables."""
    ranked = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT"}
    own = {k: v for k, v in os.environ.items() if k not in ranked}
    offline = "0" if "HF_ENDPOINT" in own else "1"
    return own | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "HF_HUB_OFFLINE": offline, "PYTHONPATH": str(ROOT)}


def accelerate(tmp: Path, module: str, *arguments: str, ranks: int, stage: int | Path) -> None:
    """What `accelerate launch --use_deepspeed -m MODULE ARGUMENTS` does with so many ranks, but for its launcher.

    stage: with nothing kept whole by ZeRO-3; or the file of DeepSpeed's settings.
    """
    config = stage if isinstance(stage, Path) else stage_file(tmp, stage)
    deepspeed = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(config)}
    meeting = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(get_free_port()), "WORLD_SIZE": str(ranks)}
    forked(_launched, environment() | deepspeed | meeting, module, arguments, ranks=ranks)


def _launched(rank: int, variables: dict[str, str], module: str, arguments: tuple[str, ...]) -> None:
    program(rank, variables | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, module, arguments)


def program(_: int, variables: dict[str, str], module: str, arguments: Sequence[str]) -> None:
    """`python -m MODULE ARGUMENTS` in this process."""
    os.environ.clear()
    os.environ.update(variables)
    sys.argv = [module, *arguments]
    gc.freeze()  # what is imported need not be looked through again and again
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def forked(work: Callable[..., None], *arguments: object, ranks: int = 1, timeout: int = 300) -> None:
    """Run work(rank, *arguments) in so many processes and raise what one of them raises."""
    started, end = start(work, *arguments, ranks=ranks), time.time() + timeout
    while not started.join(max(0.0, end - time.time())):
        if time.time() >= end:
            for process in started.processes:
                process.kill()
            raise TimeoutError(f"{work.__name__} in {ranks} processes ran longer than {timeout} s")


def start(work: Callable[..., None], *arguments: object, ranks: int = 1) -> ProcessContext:
    """The same, still running; forked from a process that has all imported, which costs many times what most work does.

    One process hashes words as another of them does: what must not hang on that takes a process of its own as well.
    """
    multiprocessing.set_forkserver_preload(IMPORTED)
    return start_processes(work, arguments, ranks, join=False, start_method="forkserver")


def stage_file(tmp: Path, stage: int, *, offload: bool = False) -> Path:
    """DeepSpeed's settings for a ZeRO stage, its optimizer in main memory or not."""
    zero = {"stage": stage, "reduce_bucket_size": 1000}  # less than a model here, and than some of its parameters
    zero |= {"stage3_param_persistence_threshold": 0} if stage == 3 else {}
    zero |= {"offload_optimizer": {"device": "cpu"}} if offload else {}
    settings = {"zero_optimization": zero, "train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1}
    config = tmp / f"zero{stage}.json"
    config.write_text(json.dumps(settings))
    return config
