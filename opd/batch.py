"""The records that travel down the pipeline: Prompt → Rollout → Batch → TokenTable.

Dimension dictionary; a tensor's name ends in its shape, a lower-case letter is a tile of the upper-case axis:

    P prompts · G rollouts of one prompt · B rollouts (P·G) · L trained tokens of a rollout
    T packed tokens, prompts included · C trained tokens of a batch or table · N retained tokens
    V vocabulary · H hidden (Hs student, Ht teacher) · K top-k · R data ranks
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

FinishReason = Literal["stop", "length", "error"]
REFERENCE = "reference_logprob"
"""log p of the sampled token by the student at start; a model of its own, where an objective needs it."""


@dataclass(frozen=True)
class Prompt:
    """One prompt as the model reads it.

        Prompt(index=7, token_ids=[1, 15, 9], extra={"answer": "12"})

    index: its row in the (filtered) data set; `extra`: the data set's other columns.
    """

    index: int
    token_ids: list[int]
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Rollout:
    """A prompt and what the student made of it. Log-probs and versions stand per *trained* token.

        token_ids  1     15    9   | 4     6     2(end)
        trained    False False False True  True  True
        logprobs                     -0.2  -1.1  -0.01     sampler's, at the sampler's temperature
        versions                     3     3     3         weights that sampled the token

    The end token is trained; prompt, padding and tool output never are. `group` numbers the prompt within the step.
    A failed or cut-off rollout stays data, with its `finish`.
    """

    token_ids: list[int]
    trained: list[bool]
    logprobs: list[float]
    versions: list[int]
    finish: FinishReason
    group: int
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.trained[:1] == [True]:
            raise ValueError("a rollout's first token has nothing before it that could predict it: it can't be trained")
        if not sum(self.trained) == len(self.logprobs) == len(self.versions):
            raise ValueError(
                f"{sum(self.trained)} trained tokens, {len(self.logprobs)} log-probs, {len(self.versions)} versions: "
                "these must be as many"
            )

    def within(self, vocabulary: int | None) -> Rollout:
        """Itself, or cut off (`error`) before the first trained token that only one of two padded heads knows."""
        unknown = [i for i in self.positions if vocabulary is not None and self.token_ids[i] >= vocabulary]
        if not unknown:
            return self
        end, kept = unknown[0], sum(self.trained[: unknown[0]])
        return replace(
            self,
            token_ids=self.token_ids[:end],
            trained=self.trained[:end],
            logprobs=self.logprobs[:kept],
            versions=self.versions[:kept],
            finish="error",
        )

    @property
    def length(self) -> int:
        """L, the number of trained tokens."""
        return len(self.logprobs)

    @property
    def positions(self) -> list[int]:
        """Where the trained tokens lie in `token_ids`."""
        return [i for i, is_trained in enumerate(self.trained) if is_trained]

    @property
    def completion(self) -> list[int]:
        """The trained token ids."""
        return [self.token_ids[i] for i in self.positions]

    @property
    def prompt(self) -> list[int]:
        """The token ids that are never trained."""
        return [token for token, is_trained in zip(self.token_ids, self.trained, strict=True) if not is_trained]


@dataclass(frozen=True)
class Batch:
    """A micro-batch: rollouts laid out as rows, and for each trained token where its prediction stands.

        rollouts [5, 2] of the step: token_ids (1 15 9 | 4 6 2) and (1 7 | 2)
        input_ids_SW    [[1, 15, 9, 4, 6, 2], [1, 7, 2, 0, 0, 0]]      right padding: causal attention never sees it
        source_C        [2, 3, 4, 7]        the position *before* each trained token, in the flattened rows
        token_id_C      [4, 6, 2, 2]
        rollout_C       [5, 5, 5, 2]        index within the step's rollouts
        row_C           [20, 21, 22, 6]     the token's row in the step's TokenTable

    With one packed row (S = 1) `position_SW` restarts at each rollout, and attention never crosses that border.
    An empty micro-batch has one dummy token and C = 0, so that its collectives still run. pieces: it is one of so many
    pieces of a micro-batch, which ranks hold that share its sequences (`packing.piece_of`).
    """

    rollouts: list[int]
    input_ids_SW: Int[Tensor, "S W"]
    position_SW: Int[Tensor, "S W"]
    source_C: Int[Tensor, " C"]
    token_id_C: Int[Tensor, " C"]
    rollout_C: Int[Tensor, " C"]
    row_C: Int[Tensor, " C"]
    pieces: int = 1

    def to(self, device: torch.device) -> Batch:
        """The same batch with its tensors on `device`."""
        columns = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: c.to(device) for name, c in columns.items() if isinstance(c, Tensor)})

    def rows(self, index_c: Tensor) -> Batch:
        """The batch cut to those of its trained tokens; the rows that the model reads stay whole."""
        names = ("source_C", "token_id_C", "rollout_C", "row_C")
        return replace(self, **{name: getattr(self, name)[index_c.to(self.row_C.device)] for name in names})


@dataclass(frozen=True)
class TokenTable:
    """One row for every trained token of the step, gathered: the same on every rank. Selectors see nothing else.

        rollout_C   0 0 0 1 1         token 2 of rollout 0 is the table's row 2
        position_C  0 1 2 0 1         its place among the rollout's trained tokens

    Rows are ordered by rollout, then position. `statistics` holds float32 (or float64) columns in nats by name
    (see `opd.head.statistics`), [C] or [C, K]. Per rollout: `length_B`, `group_B`, and `reward_B` and `advantage_B`,
    NaN where there is none.
    """

    rollout_C: Int[Tensor, " C"]
    position_C: Int[Tensor, " C"]
    token_id_C: Int[Tensor, " C"]
    sampler_logprob_C: Float[Tensor, " C"]
    statistics: dict[str, Tensor]
    length_B: Int[Tensor, " B"]
    reward_B: Float[Tensor, " B"]
    advantage_B: Float[Tensor, " B"]
    group_B: Int[Tensor, " B"]

    def __len__(self) -> int:
        return len(self.rollout_C)

    def __getitem__(self, name: str) -> Float[Tensor, "C ..."]:
        """The statistic of that name, [C], or [C, K] for candidates."""
        return self.statistics[name]

    def rows(self, index_c: Tensor) -> TokenTable:
        """The table cut to those token rows; columns per rollout stay whole."""
        return replace(
            self,
            rollout_C=self.rollout_C[index_c],
            position_C=self.position_C[index_c],
            token_id_C=self.token_id_C[index_c],
            sampler_logprob_C=self.sampler_logprob_C[index_c],
            statistics={name: column[index_c] for name, column in self.statistics.items()},
        )

    def with_statistics(self, statistics: dict[str, Tensor]) -> TokenTable:
        """The same table with these statistics."""
        return replace(self, statistics=statistics)

    def mean_by_rollout(self, value_C: Float[Tensor, " C"]) -> Float[Tensor, " B"]:
        """Mean over each rollout's tokens; 0 for a rollout that has none."""
        sum_B = value_C.new_zeros(len(self.length_B)).index_add(0, self.rollout_C, value_C)
        return sum_B / torch.bincount(self.rollout_C, minlength=len(self.length_B)).clamp_min(1)

    def by_rollout(self) -> list[Tensor]:
        """Token rows of each rollout that has any, in order."""
        order = torch.argsort(self.rollout_C, stable=True)
        counts = torch.bincount(self.rollout_C, minlength=len(self.length_B))
        return [rows for rows in torch.split(order, counts.tolist()) if len(rows)]


def token_table(
    rollouts: list[Rollout],
    reward_B: Tensor,
    advantage_B: Tensor | None = None,
    statistics: dict[str, Tensor] | None = None,
) -> TokenTable:
    """The step's table from its rollouts and the gathered statistics (columns ordered by rollout, then position)."""
    length_B = torch.tensor([r.length for r in rollouts], dtype=torch.long)
    positions = [torch.arange(n) for n in length_B.tolist()]
    return TokenTable(
        rollout_C=torch.repeat_interleave(torch.arange(len(rollouts)), length_B),
        position_C=torch.cat(positions) if positions else torch.zeros(0, dtype=torch.long),
        token_id_C=torch.tensor([t for r in rollouts for t in r.completion], dtype=torch.long),
        sampler_logprob_C=torch.tensor([x for r in rollouts for x in r.logprobs]),
        statistics=statistics or {},
        length_B=length_B,
        reward_B=reward_B,
        advantage_B=torch.full_like(reward_B, torch.nan) if advantage_B is None else advantage_B,
        group_B=torch.tensor([r.group for r in rollouts], dtype=torch.long),
    )
