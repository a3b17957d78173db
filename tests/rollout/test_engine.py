"""How ranks share what an engine samples, with threads for ranks and an engine that answers at once."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from opd.batch import Prompt
from opd.distributed import Ranks
from opd.rollout.engine import Completion, Request, RolloutEngine, Sampling


class Threads(Ranks):
    """Ranks that are threads of this process."""

    def __init__(self, index: int, items: list[Any], meet: threading.Barrier) -> None:
        super().__init__()
        self.index, self.count, self.items, self.meet = index, len(items), items, meet

    def gather_objects(self, item: Any) -> list[Any]:
        self.items[self.index] = item
        self.meet.wait(10)
        return list(self.items)


class Echo(RolloutEngine):
    """Answers each request with its group and its seed, and notes what it was asked."""

    def sample(self, requests: list[Request], sampling: Sampling) -> list[Completion]:
        self.asked = [(request.group, request.seed) for request in requests]
        return [Completion([request.group, request.seed % 100], [0.0, 0.0], "stop") for request in requests]


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_ranks_of_one_engine_are_asked_the_same_and_every_rank_gets_all_in_order(parts: int):
    items, meet = [None] * 4, threading.Barrier(4)
    engines = [Echo(Threads(index, items, meet), parts) for index in range(4)]
    prompts, made = [Prompt(i, [1, 3]) for i in range(5)], [None] * 4

    def generate(index: int) -> None:
        made[index] = engines[index].generate(prompts, Sampling(2, 2, 1.0, ("key",)))

    threads = [threading.Thread(target=generate, args=(index,)) for index in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert made[0] == made[1] == made[2] == made[3]
    alone = Echo(Ranks()).generate(prompts, Sampling(2, 2, 1.0, ("key",)))
    assert made[0] == alone and [r.group for r in alone] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    asked = [engine.asked for engine in engines]
    assert all(asked[i] == asked[j] for i in range(4) for j in range(4) if i // parts == j // parts)
    assert sum(len(asked[i]) for i in range(0, 4, parts)) == 10, "nothing is sampled twice"
