"""Every value that changes with training progress is resolved here, before a step: a pure function of the step."""

from __future__ import annotations

import torch
from transformers import get_scheduler

from opd.config import Optimizer


def learning_rate(optimizer: Optimizer, step: int, steps: int) -> float:
    """The learning rate of step 0 … steps − 1, by transformers' schedules.

    Warm-up counts from step 1, so that no step is lost at a rate of 0.
    """
    dummy = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=1.0)
    cosine = {"min_lr_rate": optimizer.min_lr_share}
    name = "cosine_with_min_lr" if optimizer.schedule == "cosine" else optimizer.schedule
    name = "constant_with_warmup" if name == "constant" else name
    schedule = get_scheduler(
        name,
        dummy,
        num_warmup_steps=optimizer.warmup,
        num_training_steps=steps,
        scheduler_specific_kwargs=cosine if optimizer.schedule == "cosine" else None,
    )
    at = step + 1 if step < optimizer.warmup else step
    return optimizer.lr * schedule.lr_lambdas[0](at)
