"""Run by tests/rollout/test_tensor_parallel.py: one vLLM engine over all ranks, beside DeepSpeed's process group.

    python -m tests.workers.tensor_parallel START THEN FOLDER

START, THEN: model folders; the engine starts from the first and takes the second's weights. Rank 0 leaves what was
sampled as FOLDER/made.json.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from opd import distributed
from opd.batch import Prompt
from opd.distributed import Ranks
from opd.models import load_model
from opd.rollout.engine import Request, Sampling
from opd.rollout.settings import RolloutSettings
from opd.rollout.start import start_engine

SAMPLINGS = {
    "greedy": Sampling(1, 12, 0.0),
    "seeded": Sampling(2, 12, 1.0, ("parts",)),
    "unseeded": Sampling(2, 12, 1.0),
}


def elements(model: torch.nn.Module) -> int:
    """Of the weights that this rank holds."""
    return sum(parameter.numel() for parameter in model.parameters())


def sampled(ranks: Ranks, start: str, then: str) -> dict[str, Any]:
    """Rollouts of each kind; `alike`: every rank's own completions of the same requests without seeds; `elements`."""
    settings = RolloutSettings(type="vllm", kv_cache_mib=64, tensor_parallel=ranks.count)
    engine = start_engine(start, settings, ranks, dtype=torch.float32, max_tokens=64, stop=[2])
    (held,) = engine.llm.apply_model(elements)
    engine.load(load_model(then, dtype=torch.float32).named_parameters(), 1)
    prompts = [Prompt(i, [1, 3 + i, 4, 5]) for i in range(5)]
    torch.manual_seed(ranks.index)  # a trainer's own draws need not be alike on all ranks
    made = {name: [asdict(r) for r in engine.generate(prompts, s)] for name, s in SAMPLINGS.items()}
    own = engine.sample([Request(prompt, 0, None) for prompt in prompts], SAMPLINGS["unseeded"])
    made["elements"] = held
    made["alike"] = ranks.gather_objects([asdict(completion) for completion in own])
    engine.close()
    return made


if __name__ == "__main__":
    accelerator = distributed.start("fp32", max_grad_norm=1.0, trackers=[])
    ranks = Ranks(accelerator.device)
    made = sampled(ranks, *sys.argv[1:3])
    if ranks.is_main:
        (Path(sys.argv[3]) / "made.json").write_text(json.dumps(made))
    distributed.leave(ranks)
