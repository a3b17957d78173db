import itertools

import torch

from opd.seeds import generator_for, seed_for


def test_a_seed_is_the_same_in_every_process_and_version():
    assert seed_for("rollout", 0, 3) == 7722774882571610129


def test_no_two_keys_share_a_seed():
    keys = [
        (name, *numbers) for name in ("select", "rollout", "0") for numbers in itertools.product(range(9), repeat=3)
    ]
    keys += [("ab", "c"), ("a", "bc"), ("abc",), (1, 11), (11, 1), (111,), ("1", 11), (1, "11")]
    assert len({seed_for(*key) for key in keys}) == len(keys)


def test_a_seed_fits_a_signed_64_bit_integer():
    assert all(0 <= seed_for(i) < 2**63 for i in range(200))


def test_a_generator_does_not_touch_the_global_one():
    before = torch.get_rng_state()
    first, second = (torch.rand(4, generator=generator_for("x", 1)) for _ in range(2))
    assert torch.equal(first, second) and torch.equal(torch.get_rng_state(), before)
