"""Rollouts by transformers: slow, everywhere, and with a generator of its own for each rollout."""

from __future__ import annotations

import torch
from torch import Tensor

from opd.distributed import Ranks
from opd.models import load_model
from opd.rollout.engine import Completion, Request, RolloutEngine, Sampling, Weights
from opd.rollout.settings import RolloutSettings
from opd.seeds import seed_for

ROWS = 64
"""Rollouts decoded together."""


class TransformersEngine(RolloutEngine):
    """Batched sampling with a key-value cache that grows as it must, from a copy of the student's weights."""

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
    ):
        super().__init__(ranks)
        self.stop = torch.tensor(stop, device=ranks.device)
        self.seed, self.drawn = seed, 0
        self.model = load_model(model, dtype=dtype, revision=revision).to(ranks.device).eval().requires_grad_(False)

    def sample(self, requests: list[Request], sampling: Sampling) -> list[Completion]:
        done: list[Completion] = []
        for start in range(0, len(requests), ROWS):
            done += self._decode(requests[start : start + ROWS], sampling)
        return done

    @torch.no_grad()
    def load(self, weights: Weights, version: int) -> None:
        own = dict(self.model.named_parameters()) | dict(self.model.named_buffers())
        for name, tensor in weights:
            own[name].copy_(tensor)
        self.version = version

    @torch.no_grad()
    def _decode(self, requests: list[Request], sampling: Sampling) -> list[Completion]:
        token_BS, mask_BS = self._left_padded(requests)
        generators = [torch.Generator().manual_seed(self._seed_of(r)) for r in requests]
        alive_B = torch.ones(len(requests), dtype=torch.bool, device=token_BS.device)
        cache, tokens, logprobs, living = None, [], [], []
        for _ in range(sampling.max_new_tokens):
            position_BS = (mask_BS.cumsum(-1) - 1).clamp_min(0)[:, -token_BS.shape[1] :]
            out = self.model(
                token_BS, attention_mask=mask_BS, position_ids=position_BS, past_key_values=cache, logits_to_keep=1
            )
            cache = out.past_key_values
            token_B, logprob_B = draw(out.logits[:, -1].float(), sampling, generators)
            tokens.append(token_B), logprobs.append(logprob_B), living.append(alive_B)
            alive_B = alive_B & ~torch.isin(token_B, self.stop)
            if not alive_B.any():
                break
            token_BS = token_B[:, None]
            mask_BS = torch.cat([mask_BS, mask_BS.new_ones(len(requests), 1)], dim=1)
        lengths = torch.stack(living, 1).sum(1).tolist()
        rows = zip(
            torch.stack(tokens, 1).tolist(), torch.stack(logprobs, 1).tolist(), lengths, alive_B.tolist(), strict=True
        )
        return [Completion(t[:n], p[:n], "length" if alive else "stop") for t, p, n, alive in rows]

    def _left_padded(self, requests: list[Request]) -> tuple[Tensor, Tensor]:
        width = max(len(r.prompt.token_ids) for r in requests)
        pads = [width - len(r.prompt.token_ids) for r in requests]
        tokens = [[0] * pad + r.prompt.token_ids for pad, r in zip(pads, requests, strict=True)]
        mask = [[0] * pad + [1] * (width - pad) for pad in pads]
        return torch.tensor(tokens, device=self.ranks.device), torch.tensor(mask, device=self.ranks.device)

    def _seed_of(self, request: Request) -> int:
        self.drawn += 1
        return seed_for("unseeded", self.seed, self.version, self.drawn) if request.seed is None else request.seed


def draw(logits_BV: Tensor, sampling: Sampling, generators: list[torch.Generator]) -> tuple[Tensor, Tensor]:
    """A token a row and its log-prob among those that may be drawn, each row by its own generator."""
    log_p_BV = most_likely(torch.log_softmax(logits_BV / (sampling.temperature or 1.0), dim=-1), sampling)
    if sampling.temperature == 0:
        token_B = log_p_BV.argmax(-1)
    else:
        uniform_B = torch.stack([torch.rand((), generator=g, dtype=torch.float64) for g in generators])
        cumulative_BV = log_p_BV.double().exp().cumsum(-1)
        target_B1 = (uniform_B.to(log_p_BV.device) * cumulative_BV[:, -1])[:, None]
        token_B = torch.searchsorted(cumulative_BV, target_B1, right=True).squeeze(-1).clamp_max(log_p_BV.shape[-1] - 1)
    return token_B, log_p_BV.gather(-1, token_B[:, None]).squeeze(-1)


def most_likely(log_p_BV: Tensor, sampling: Sampling) -> Tensor:
    """Log-probs of the distribution without all but its top k, and of these without what top p leaves out."""
    V = log_p_BV.shape[-1]
    if sampling.top_k in (0, V) and sampling.top_p == 1:
        return log_p_BV
    sorted_BV, order_BV = log_p_BV.sort(dim=-1, descending=True, stable=True)
    sorted_BV = sorted_BV.masked_fill(torch.arange(V, device=log_p_BV.device) >= (sampling.top_k or V), -torch.inf)
    p_BV = sorted_BV.softmax(-1)
    sorted_BV = sorted_BV.masked_fill(p_BV.cumsum(-1) - p_BV >= sampling.top_p, -torch.inf)
    return torch.empty_like(log_p_BV).scatter_(-1, order_BV, sorted_BV).log_softmax(-1)
