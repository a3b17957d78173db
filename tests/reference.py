"""One whole step in plain transformers, NumPy and autograd: the independent answer that the trainer is held to.

Nothing here imports opd: logits are built whole, one rollout at a time, and selection is written a second time.
"""

from __future__ import annotations

import math

import numpy as np
import torch


def log_probs(model, rollout) -> torch.Tensor:
    """[L, V] log-probabilities at the positions that predict the rollout's trained tokens."""
    logits = model(torch.tensor([rollout.token_ids])).logits[0]
    before = [i - 1 for i, trained in enumerate(rollout.trained) if trained]
    return logits[before].log_softmax(-1)


def reverse_kl_loss(student, teacher, rollouts, *, soft_or_share: float | None = None) -> torch.Tensor:
    """Mean KL(S‖T) over the retained tokens of all rollouts together; all tokens without a share."""
    ours = [log_probs(student, r) for r in rollouts]
    with torch.no_grad():
        theirs = [log_probs(teacher, r) for r in rollouts]
    kls = [(s.exp() * (s - t)).sum(-1) for s, t in zip(ours, theirs, strict=True)]
    if soft_or_share is None:
        return torch.cat(kls).mean()
    kept = soft_or_rows([s.detach().numpy() for s in ours], [t.numpy() for t in theirs], soft_or_share)
    return torch.cat([kl[rows] for kl, rows in zip(kls, kept, strict=True)]).mean()


def soft_or_rows(ours: list[np.ndarray], theirs: list[np.ndarray], share: float) -> list[list[int]]:
    """TIP's Soft-OR scaled over the batch, top share kept in each rollout; row numbers of each rollout."""
    entropy = np.concatenate([-(np.exp(s) * s).sum(-1) for s in ours])
    divergence = np.concatenate([(np.exp(s) * (s - t)).sum(-1) for s, t in zip(ours, theirs, strict=True)])
    entropy = np.minimum(entropy, np.percentile(entropy, 98))
    h = (entropy - entropy.min()) / (entropy.max() - entropy.min())
    d = (divergence - divergence.min()) / (divergence.max() - divergence.min())
    score = h + d - h * d
    kept, start = [], 0
    for s in ours:
        length = len(s)
        mine = score[start : start + length]
        start += length
        count = max(1, math.floor(share * length + 1e-9)) if length else 0
        kept.append(sorted(sorted(range(length), key=lambda i, mine=mine: (-mine[i], i))[:count]))
    return kept
