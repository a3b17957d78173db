"""The seam between trainer and engines: prompts in, rollouts out, on every rank alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor

from opd.batch import FinishReason, Prompt, Rollout
from opd.distributed import Ranks
from opd.seeds import seed_for

Weights = Iterator[tuple[str, Tensor]]
"""Names of the model's parameters, and whole tensors."""


@dataclass(frozen=True)
class Sampling:
    """How to sample: G rollouts a prompt, temperature 0 is greedy.

    top_p, top_k: sample the likeliest tokens that hold this mass, or so many (0: all). Training leaves both off: a loss
    over the whole vocabulary wants whole distributions. Log-probs are those of what is sampled from.
    seed_key: what every rollout's seed is keyed by, together with its prompt and the how-manieth of that prompt it is;
    None leaves it to the engine.
    """

    samples: int
    max_new_tokens: int
    temperature: float
    seed_key: tuple[int | str, ...] | None = None
    top_p: float = 1.0
    top_k: int = 0


@dataclass(frozen=True)
class Request:
    """One rollout to be made."""

    prompt: Prompt
    group: int
    seed: int | None


@dataclass(frozen=True)
class Completion:
    """What an engine made of a request: tokens, their log-probs at the sampler's temperature, and why it ended."""

    token_ids: list[int]
    logprobs: list[float]
    finish: FinishReason


class RolloutEngine:
    """Samples from the student. Collective: every rank passes the same prompts and gets the same rollouts.

    ranks_per_engine: so many neighbouring ranks are one engine; they sample the same requests, and the first answers.
    """

    def __init__(self, ranks: Ranks, ranks_per_engine: int = 1) -> None:
        self.ranks, self.ranks_per_engine = ranks, ranks_per_engine
        self.version = 0
        self.weights_of: Callable[[], Weights] | None = None

    def generate(self, prompts: list[Prompt], sampling: Sampling) -> list[Rollout]:
        """G rollouts of every prompt, in order of prompt, then sample; the ranks share the work."""
        requests, said = [], Counter()
        for group, prompt in enumerate(prompts):
            for _ in range(sampling.samples):
                requests.append(Request(prompt, group, self._seed(sampling, prompt, said[prompt.index])))
                said[prompt.index] += 1
        engine, part = divmod(self.ranks.index, self.ranks_per_engine)
        engines = self.ranks.count // self.ranks_per_engine
        mine = requests[engine::engines]
        made = [self._rollout(request, done) for request, done in zip(mine, self.sample(mine, sampling), strict=True)]
        rollouts: list[Rollout | None] = [None] * len(requests)
        for other, share in enumerate(self.ranks.gather_objects(made if part == 0 else None)[:: self.ranks_per_engine]):
            rollouts[other::engines] = share
        return rollouts

    def sample(self, requests: list[Request], sampling: Sampling) -> list[Completion]:
        """This rank's completions, in order. A completion that fails is data: finish `error`."""
        raise NotImplementedError

    def load(self, weights: Weights, version: int) -> None:
        """Take new weights, which every rank streams in lockstep."""
        raise NotImplementedError

    def follow(self, weights_of: Callable[[], Weights]) -> None:
        """From now on the weights that were last loaded can be had again: an engine need not keep them asleep."""
        self.weights_of = weights_of

    @property
    def alters_transformers(self) -> bool:
        """Whether it has changed transformers' class of its model, which no trainer can load in this process then."""
        return False

    def close(self) -> None:
        """Free what the engine holds."""

    def _seed(self, sampling: Sampling, prompt: Prompt, sample: int) -> int | None:
        return None if sampling.seed_key is None else seed_for(*sampling.seed_key, prompt.index, sample)

    def _rollout(self, request: Request, done: Completion) -> Rollout:
        prompt = request.prompt
        return Rollout(
            token_ids=[*prompt.token_ids, *done.token_ids],
            trained=[False] * len(prompt.token_ids) + [True] * len(done.token_ids),
            logprobs=done.logprobs,
            versions=[self.version] * len(done.token_ids),
            finish=done.finish,
            group=request.group,
            extra=prompt.extra,
        )
