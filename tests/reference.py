"""One whole step in plain transformers, NumPy and autograd: the independent answer that the trainer is held to.

Nothing here imports opd: logits are built whole, one rollout at a time, and selection is written a second time.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch


def log_probs(model, rollout, stop: tuple[int, ...] = ()) -> torch.Tensor:
    """[L, V] log-probabilities at the positions that predict the rollout's trained tokens.

    The stop ids are one outcome: it stands in the last column, and their own columns are gone.
    """
    logits = model(torch.tensor([rollout.token_ids])).logits[0]
    before = [i - 1 for i, trained in enumerate(rollout.trained) if trained]
    log_p = logits[before].log_softmax(-1)
    if not stop:
        return log_p
    others = [i for i in range(log_p.shape[-1]) if i not in stop]
    return torch.cat([log_p[:, others], log_p[:, list(stop)].logsumexp(-1, keepdim=True)], -1)


def sampled(log_p: torch.Tensor, rollout, stop: tuple[int, ...] = ()) -> torch.Tensor:
    """[L] log-probability of each trained token, a stop id's being its class's."""
    tokens = [t for t, trained in zip(rollout.token_ids, rollout.trained, strict=True) if trained]
    columns = [log_p.shape[-1] - 1 if t in stop else t - sum(s < t for s in stop) for t in tokens]
    return log_p[range(len(columns)), columns]


def both(student, teacher, rollouts, stop: tuple[int, ...] = ()) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Log-probabilities of every rollout by the student, and by the teacher without gradient."""
    ours = [log_probs(student, r, stop) for r in rollouts]
    with torch.no_grad():
        return ours, [log_probs(teacher, r, stop) for r in rollouts]


def kl(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    return (p.exp() * (p - q)).sum(-1)


def entropy(log_p: torch.Tensor) -> torch.Tensor:
    return -(log_p.exp() * log_p).sum(-1)


def kept_of(total: int, share: float) -> int:
    return max(1, math.floor(share * total + 1e-9)) if total else 0


def reverse_kl_loss(student, teacher, rollouts, *, soft_or_share: float | None = None, stop=()) -> torch.Tensor:
    """Mean KL(S‖T) over the retained tokens of all rollouts together; all tokens without a share."""
    ours, theirs = both(student, teacher, rollouts, stop)
    kls = [kl(s, t) for s, t in zip(ours, theirs, strict=True)]
    if soft_or_share is None:
        return torch.cat(kls).mean()
    kept = soft_or_rows([s.detach().numpy() for s in ours], [t.numpy() for t in theirs], soft_or_share)
    return torch.cat([kl[rows] for kl, rows in zip(kls, kept, strict=True)]).mean()


def sampled_reverse_kl_loss(student, teacher, rollouts, *, stop=()) -> torch.Tensor:
    """Mean of −A log p_S(y), A = log p_T(y) − log p_S(y) held fixed."""
    ours, theirs = both(student, teacher, rollouts, stop)
    s = torch.cat([sampled(p, r, stop) for p, r in zip(ours, rollouts, strict=True)])
    t = torch.cat([sampled(p, r, stop) for p, r in zip(theirs, rollouts, strict=True)])
    return -((t - s).detach() * s).mean()


def tsdkd_loss(student, teacher, rollouts, *, opening, k, tau, beta, unsure, stop=()) -> torch.Tensor:
    """0.1 · Indirect + Direct + EntropyMin of arXiv 2603.13260, each a mean over its own tokens of the step."""
    indirect, direct, minimised = [], [], []
    for s, t in zip(*both(student, teacher, rollouts, stop), strict=True):
        h = entropy(s)
        m = ((1 - beta) * s.exp() + beta * t.exp()).log()
        gate = torch.sigmoid((h - entropy(t)) / tau).detach()
        direct += list(gate * (beta * kl(t, m) + (1 - beta) * kl(s, m)))
        minimised += sorted(h, reverse=True)[: kept_of(len(h), unsure)]
        opener = next((n for n in range(1, len(h) + 1) if h[:n].sum() >= opening * h.sum()), 0)
        for ours, theirs in zip(s[:opener], t[:opener], strict=True):
            likeliest = sorted(range(len(ours)), key=lambda i, ours=ours: -ours[i])[:k]
            ranking = sorted(likeliest, key=lambda i, theirs=theirs: -theirs[i])
            indirect.append(-sum(ours[i] - ours[ranking[j:]].logsumexp(0) for j, i in enumerate(ranking)))
    return 0.1 * torch.stack(indirect).mean() + torch.stack(direct).mean() + torch.stack(minimised).mean()


def d3s_loss(student, teacher, rollouts, *, rewards, rollouts_kept, share) -> torch.Tensor:
    """Mean KL(S‖T) over D³S's tokens, arXiv 2509.22115: of all subsets of rollouts the widest, then the top |A|·H_S."""
    size = advantages(rewards, [r.group for r in rollouts])
    chosen = max(itertools.combinations(range(len(rollouts)), rollouts_kept), key=lambda c: np.var(size[list(c)]))
    ours, theirs = both(student, teacher, [rollouts[i] for i in chosen])
    score = torch.cat([abs(size[i]) * entropy(s.detach()) for i, s in zip(chosen, ours, strict=True)])
    kept = score.argsort(descending=True)[: kept_of(len(score), share)]
    return torch.cat([kl(s, t) for s, t in zip(ours, theirs, strict=True)])[kept].mean()


def advantages(rewards: list[float], groups: list[int]) -> np.ndarray:
    """(r − mean)/(std + 1e-4) within each group of several, else 0."""
    found = np.zeros(len(rewards))
    for group in set(groups):
        members = np.array(groups) == group
        own = np.array(rewards)[members]
        found[members] = (own - own.mean()) / (own.std(ddof=1) + 1e-4) if len(own) > 1 else 0.0
    return found


def tgdpo_loss(student, teacher, rollouts, *, origin, rewards, alpha, beta) -> torch.Tensor:
    """Mean of −log σ(best − worst) over the prompts that have both, arXiv 2506.14574, Eq. 13."""
    losses = []
    for group in sorted({r.group for r in rollouts}):
        graded = sorted((rewards[i], i) for i, r in enumerate(rollouts) if r.group == group and r.length)
        if len(graded) < 2:
            continue
        margin = 0.0
        for sign, (_, i) in ((1, graded[-1]), (-1, graded[0])):
            with torch.no_grad():
                start, guide = (sampled(log_probs(m, rollouts[i]), rollouts[i]) for m in (origin, teacher))
            moved = sampled(log_probs(student, rollouts[i]), rollouts[i]) - start
            margin = margin + sign * (beta * (1 + sign * alpha * beta * (guide - start)) * moved).sum()
        losses.append(-torch.nn.functional.logsigmoid(margin))
    return torch.stack(losses).mean()


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
