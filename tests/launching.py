"""Starting real processes from tests: `accelerate launch` with a stage and a number of ranks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EVERY_CASE = pytest.mark.skipif(os.environ.get("EVERY_CASE") != "1", reason="EVERY_CASE=1 runs it: some minutes more")


def environment() -> dict[str, str]:
    """One thread a rank, no hub but one that HF_ENDPOINT names, and none of this process's own rank variables."""
    own = {k: v for k, v in os.environ.items() if k not in {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT"}}
    offline = "0" if "HF_ENDPOINT" in own else "1"
    return own | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "HF_HUB_OFFLINE": offline, "PYTHONPATH": str(ROOT)}


def accelerate(
    tmp: Path, *command: str, ranks: int, stage: int | Path, timeout: int = 300
) -> subprocess.CompletedProcess:
    """Run `python -m COMMAND` on so many ranks under DeepSpeed, nothing kept whole by ZeRO-3; stage: or its file."""
    config = stage if isinstance(stage, Path) else stage_file(tmp, stage)
    launch = ["-m", "accelerate.commands.launch", "--use_deepspeed", "--deepspeed_config_file", str(config)]
    return subprocess.run(
        [sys.executable, *launch, "--num_processes", str(ranks), "--main_process_port", "0", "-m", *command],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def stage_file(tmp: Path, stage: int) -> Path:
    """DeepSpeed's settings for a ZeRO stage."""
    zero = {"stage": stage, "reduce_bucket_size": 1000}  # less than a model here, and than some of its parameters
    zero |= {"stage3_param_persistence_threshold": 0} if stage == 3 else {}
    settings = {"zero_optimization": zero, "train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1}
    config = tmp / f"zero{stage}.json"
    config.write_text(json.dumps(settings))
    return config
