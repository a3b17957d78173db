import torch

from opd.batch import Rollout, token_table
from opd.packing import lay_out


def example() -> list[Rollout]:
    """Two of the rollouts that the docstrings draw, and one between them that trained nothing."""
    long = Rollout([1, 15, 9, 4, 6, 2], [False] * 3 + [True] * 3, [-0.2, -1.1, -0.01], [3] * 3, finish="stop", group=0)
    none = Rollout([1, 5], [False] * 2, [], [], finish="error", group=1)
    short = Rollout([1, 7, 2], [False, False, True], [-0.5], [3], finish="length", group=2)
    return [long, none, short]


def test_a_rollout_knows_its_trained_tokens():
    long, none, _ = example()
    assert (long.length, long.positions, long.completion) == (3, [3, 4, 5], [4, 6, 2])
    assert (none.length, none.positions, none.completion) == (0, [], [])


def test_the_micro_batch_is_the_one_that_its_docstring_draws():
    batch = lay_out(example(), [0, 2], layout="rows")
    assert batch.input_ids_SW.tolist() == [[1, 15, 9, 4, 6, 2], [1, 7, 2, 0, 0, 0]]
    assert batch.source_C.tolist() == [2, 3, 4, 7]
    assert batch.token_id_C.tolist() == [4, 6, 2, 2]
    assert batch.rollout_C.tolist() == [0, 0, 0, 2]


def test_the_table_is_ordered_by_rollout_then_position():
    table = token_table(example(), torch.zeros(3), statistics={"reverse_kl": torch.arange(4.0)})
    assert table.rollout_C.tolist() == [0, 0, 0, 2]
    assert table.position_C.tolist() == [0, 1, 2, 0]
    assert table.token_id_C.tolist() == [4, 6, 2, 2]
    assert table.length_B.tolist() == [3, 0, 1] and table.group_B.tolist() == [0, 1, 2]
    assert [rows.tolist() for rows in table.by_rollout()] == [[0, 1, 2], [3]]


def test_rows_of_every_micro_batch_point_at_their_own_tokens_in_the_table():
    rollouts = example()
    table = token_table(rollouts, torch.zeros(3))
    for indices in ([2], [0], [2, 1, 0]):
        batch = lay_out(rollouts, indices, layout="packed")
        assert torch.equal(table.token_id_C[batch.row_C], batch.token_id_C)
        assert torch.equal(table.rollout_C[batch.row_C], batch.rollout_C)


def test_a_cut_table_keeps_its_columns_together():
    table = token_table(example(), torch.zeros(3), statistics={"reverse_kl": torch.arange(4.0)})
    part = table.rows(torch.tensor([3, 1]))
    assert len(part) == 2 and part["reverse_kl"].tolist() == [3, 1] and part.token_id_C.tolist() == [2, 6]
    assert [rows.tolist() for rows in part.by_rollout()] == [[1], [0]]
    assert torch.equal(part.length_B, table.length_B)


def test_a_step_without_rollouts_has_an_empty_table():
    table = token_table([], torch.zeros(0))
    assert len(table) == 0 and table.by_rollout() == []
