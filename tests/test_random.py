"""The counter-based random numbers: the published generator's values, and what a caller may pass as a seed."""

import numpy as np
import pytest

from pysubmod._random import as_seed, random_bits, random_order, uniform


def test_the_bits_are_those_of_splitmix64():
    # The first outputs of the published reference implementation, seeded with 1234567.
    known = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    assert random_bits(1234567, range(5)).tolist() == known


def test_uniform_numbers_are_the_high_bits():
    assert uniform(7, range(1000)).tolist() == [int(x) // 2**11 / 2**53 for x in random_bits(7, range(1000))]


def test_orders_are_permutations_and_differ_between_streams():
    orders = {tuple(random_order(3, 20, stream)) for stream in range(50)}
    assert len(orders) == 50
    assert all(sorted(order) == list(range(20)) for order in orders)


def test_every_place_is_as_likely_for_every_row():
    counts = np.zeros((6, 6))
    for seed in range(3000):
        counts[np.arange(6), random_order(seed, 6)] += 1
    assert ((counts - 500) ** 2 / 500).sum() < 60  # chi-square with 25 degrees of freedom: 1e-4


@pytest.mark.parametrize("bad", ["7", 1.5, True, object()])
def test_seeds_of_other_kinds_are_refused(bad):
    with pytest.raises(TypeError, match="random_state: expected an integer"):
        as_seed(bad)


@pytest.mark.parametrize("bad", [-1, 2**63])
def test_seeds_out_of_range_are_refused(bad):
    with pytest.raises(ValueError, match="random_state: expected 0"):
        as_seed(bad)


def test_seeds_from_generators():
    assert as_seed(5) == 5
    assert as_seed(np.int32(5)) == 5
    assert as_seed(np.random.default_rng(1)) == as_seed(np.random.default_rng(1))
    assert as_seed(None) != as_seed(None)
