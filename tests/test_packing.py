import itertools
import random

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from opd.batch import Batch, Rollout
from opd.packing import lay_out, pack, piece_of
from opd.reading import backbone, trained_states

LAYOUTS = ["rows", "packed"]
both_layouts = pytest.mark.parametrize("layout", LAYOUTS)


def random_lengths(seed: int) -> list[int]:
    draw = random.Random(seed)
    return [draw.choice([1, draw.randint(1, 20), draw.randint(1, 90)]) for _ in range(draw.choice([0, 1, 3, 17, 60]))]


def random_rollouts(seed: int, count: int = 9, vocabulary: int = 29) -> list[Rollout]:
    """Prompts of at least a token, then trained and untrained stretches; some rollouts train nothing."""
    draw, made = random.Random(seed), []
    for group in range(count):
        prompt, rest = draw.randint(1, 5), draw.choice([0, 1, 4, 9])
        trained = [False] * prompt + [draw.random() < 0.7 for _ in range(rest)]
        ids = [draw.randrange(1, vocabulary) for _ in trained]
        made.append(Rollout(ids, trained, [-1.0] * sum(trained), [0] * sum(trained), finish="stop", group=group))
    return made


def cost(batch: list[int], lengths: list[int], layout: str) -> int:
    tokens = [lengths[i] for i in batch]
    return sum(tokens) if layout == "packed" else len(tokens) * max(tokens, default=0)


@both_layouts
@pytest.mark.parametrize("seed", range(40))
def test_every_rollout_stands_once_within_budget_and_every_rank_works_as_often(seed, layout):
    lengths, ranks, budget = random_lengths(seed), 1 + seed % 5, 90 + 7 * (seed % 3)
    shares = pack(lengths, token_budget=budget, ranks=ranks, layout=layout)
    assert sorted(i for share in shares for batch in share for i in batch) == list(range(len(lengths)))
    assert max(cost(batch, lengths, layout) for share in shares for batch in share) <= budget
    assert len(shares) == ranks and len({len(share) for share in shares}) == 1 and len(shares[0]) >= 1


@both_layouts
@pytest.mark.parametrize("seed", range(40))
def test_ranks_differ_by_no_more_than_the_longest_rollout(seed, layout):
    lengths = random_lengths(seed)
    shares = pack(lengths, token_budget=200, ranks=4, layout=layout)
    loads = [sum(lengths[i] for batch in share for i in batch) for share in shares]
    assert max(loads) - min(loads) <= max(lengths, default=0)


@both_layouts
@pytest.mark.parametrize("seed", range(20))
def test_neighbouring_micro_batches_could_not_have_been_one(seed, layout):
    lengths = random_lengths(seed)
    for share in pack(lengths, token_budget=100, ranks=2, layout=layout):
        for first, second in itertools.pairwise(batch for batch in share if batch):
            assert cost([*first, second[0]], lengths, layout) > 100


@both_layouts
def test_a_rollout_longer_than_the_budget_is_refused_with_both_numbers(layout):
    with pytest.raises(ValueError, match=r"101 tokens .* 100"):
        pack([3, 101], token_budget=100, ranks=1, layout=layout)


@both_layouts
@pytest.mark.parametrize("seed", range(10))
def test_indices_of_a_micro_batch_equal_a_naive_loop(seed, layout):
    rollouts = random_rollouts(seed)
    indices = random.Random(seed).sample(range(len(rollouts)), 5)
    batch = lay_out(rollouts, indices, layout=layout)
    flat, position = batch.input_ids_SW.flatten().tolist(), batch.position_SW.flatten().tolist()
    width, expected, offset = batch.input_ids_SW.shape[1], [], 0
    for place, index in enumerate(indices):
        rollout, start = rollouts[index], place * width if layout == "rows" else offset
        size = len(rollout.token_ids)
        assert flat[start : start + size] == rollout.token_ids and position[start : start + size] == list(range(size))
        first_row = sum(sum(r.trained) for r in rollouts[:index])
        trained = [j for j in range(size) if rollout.trained[j]]
        for row, j in enumerate(trained):
            expected.append((start + j - 1, rollout.token_ids[j], index, first_row + row))
        offset += size
    columns = (batch.source_C, batch.token_id_C, batch.rollout_C, batch.row_C)
    assert list(zip(*(column.tolist() for column in columns), strict=True)) == expected
    assert batch.rollouts == indices
    assert batch.input_ids_SW.shape == ((1, offset) if layout == "packed" else (5, width))


@both_layouts
def test_an_empty_micro_batch_has_a_dummy_token_and_trains_none(layout):
    batch = lay_out(random_rollouts(0), [], layout=layout)
    assert batch.input_ids_SW.tolist() == [[0]] and batch.position_SW.tolist() == [[0]]
    assert [len(c) for c in (batch.source_C, batch.token_id_C, batch.rollout_C, batch.row_C)] == [0] * 4
    assert batch.row_C.dtype == torch.long


@both_layouts
@pytest.mark.parametrize("pieces", [1, 2, 3, 7])
@pytest.mark.parametrize("count", [0, 1, 9])
def test_pieces_of_a_micro_batch_are_the_micro_batch(count, pieces, layout):
    """Each trained token is predicted once, from its own place, and what a row is widened by ends no rollout."""
    rollouts = random_rollouts(1)
    whole = lay_out(rollouts, list(range(count)), layout=layout)
    parts = [piece_of(whole, index, pieces) for index in range(pieces)]
    width = whole.input_ids_SW.shape[1]
    for name in ("input_ids_SW", "position_SW"):
        assert len({getattr(part, name).shape for part in parts}) == 1
        assert torch.equal(torch.cat([getattr(part, name) for part in parts], 1)[:, :width], getattr(whole, name))
    position_SW = torch.cat([part.position_SW for part in parts], 1)[:, width - 1 :]
    assert bool((position_SW.diff(dim=1) == 1).all()) and position_SW.shape[1] <= pieces
    read = lambda b: zip(  # noqa: E731
        b.row_C.tolist(), b.token_id_C.tolist(), b.rollout_C.tolist(), place_of(b), strict=True
    )
    assert sorted(entry for part in parts for entry in read(part)) == sorted(read(whole))
    assert all(part.rollouts == whole.rollouts for part in parts)


def place_of(batch: Batch) -> list[tuple[int, int]]:
    """Token and position that predict each trained token."""
    flat = (batch.input_ids_SW.flatten()[batch.source_C], batch.position_SW.flatten()[batch.source_C])
    return list(zip(*(column.tolist() for column in flat), strict=True))


@pytest.fixture(scope="module")
def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=29,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        attn_implementation="sdpa",
    )
    model = LlamaForCausalLM(config).double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model


@both_layouts
@pytest.mark.parametrize("seed", range(4))
@torch.no_grad()
def test_rollouts_of_a_micro_batch_never_see_one_another(llama, layout, seed):
    rollouts = random_rollouts(seed)
    batch = lay_out(rollouts, list(range(len(rollouts))), layout=layout)
    found_CV = llama.lm_head(trained_states(backbone(llama), batch)[0])
    expected_CV = torch.cat(
        [llama(torch.tensor([r.token_ids])).logits[0, [p - 1 for p in r.positions]] for r in rollouts]
    )
    torch.testing.assert_close(found_CV, expected_CV, rtol=1e-11, atol=1e-11)


@torch.no_grad()
def test_an_empty_micro_batch_runs_through_a_model(llama):
    assert trained_states(backbone(llama), lay_out([], [], layout="rows"))[0].shape == (0, 16)


@both_layouts
@pytest.mark.parametrize("seed", range(5))
def test_rollouts_of_like_length_share_a_micro_batch(seed, layout):
    lengths = random_lengths(seed)
    for share in pack(lengths, token_budget=100, ranks=2, layout=layout):
        own = [lengths[i] for batch in share for i in batch]
        assert own == sorted(own, reverse=True)
