import collections

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maestro_jax.data.index_plan import IndexPlan, hash_words, permute


@given(size=st.integers(1, 3000), key=st.integers(0, 2**63))
@settings(max_examples=50, deadline=None)
def test_permute_is_a_permutation(size, key):
    result = permute(np.arange(size), size, np.array([key], np.uint64))
    assert sorted(result.tolist()) == list(range(size))


def test_permute_of_a_large_set_without_a_table():
    size = 10**11
    indices = np.arange(0, size, size // 5000)
    result = permute(indices, size, hash_words(7))
    assert len(set(result.tolist())) == indices.size
    assert 0 <= result.min() and result.max() < size
    # Uniform: the mean of so many draws lies within five standard errors of the middle.
    assert abs(result.mean() / size - 0.5) < 5 / np.sqrt(12 * indices.size)


@pytest.mark.parametrize("size", [2, 3, 5, 17])
def test_every_place_is_equally_likely(size):
    keys = hash_words(3, np.arange(4000))
    counts = np.zeros((size, size))
    for start in range(size):
        landed = permute(np.full(keys.size, start), size, keys)
        counts[start] = np.bincount(landed, minlength=size)
    expected = keys.size / size
    chi_square = ((counts - expected) ** 2 / expected).sum(axis=1)
    # The 0.9999 quantile of chi-square with 16 degrees of freedom is 44.
    assert chi_square.max() < 50


def test_small_permutations_of_both_parities_appear():
    keys = hash_words(9, np.arange(3000))
    columns = [permute(np.full(keys.size, start), 3, keys) for start in range(3)]
    seen = collections.Counter(zip(*(column.tolist() for column in columns), strict=True))
    assert len(seen) == 6
    assert min(seen.values()) > 350


@pytest.mark.parametrize(
    "sizes,rates",
    [([7], [1.0]), ([5, 11], [1, 3]), ([40, 3, 100], [0.9, 0.001, 0.099]), ([4, 6], [0.0, 2.0])],
)
def test_every_example_once_an_epoch_in_a_new_order(sizes, rates):
    plan = IndexPlan(sizes, rates, seed=5)
    tasks, ordinals = plan.locate(np.arange(60_000))
    for task, size in enumerate(sizes):
        mine = ordinals[tasks == task]
        assert mine.tolist() == list(range(mine.size))
        epochs = plan.index(task, mine)[: mine.size // size * size].reshape(-1, size)
        assert (np.sort(epochs, axis=1) == np.arange(size)).all()
        if size > 10 and len(epochs) > 3:
            assert len({tuple(epoch) for epoch in epochs[:4].tolist()}) == 4
    share = np.array(rates) / sum(rates)
    assert (np.bincount(tasks, minlength=len(rates))[share == 0] == 0).all()


@given(
    rates=st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=40),
    seed=st.integers(-(2**40), 2**70),
    position=st.integers(0, 10**9),
)
@settings(max_examples=60, deadline=None)
def test_proportions_are_exact_to_a_block(rates, seed, position):
    plan = IndexPlan([None] * len(rates), rates, seed)
    share = np.array(rates) / sum(rates)
    counts = plan.counts(position)
    assert counts.sum() == position
    # A position lies within a block of max(256, 4 tasks) examples, in which the order is random.
    block = max(256, 4 * len(rates))
    slack = position * (2.0**-24) + 2 + np.minimum(block * share + 2, block)
    assert (np.abs(counts - position * share) <= slack + 3 * np.sqrt(block * share)).all()


def test_starting_anywhere_equals_reading_from_the_beginning():
    plan = IndexPlan([50, 60, 70], [1, 2, 4], seed=1)
    tasks, ordinals = plan.locate(np.arange(20_000))
    fresh = IndexPlan([50, 60, 70], [1, 2, 4], seed=1)
    rng = np.random.default_rng(0)
    positions = rng.integers(0, 20_000, 500)
    some_tasks, some_ordinals = fresh.locate(positions)
    assert (some_tasks == tasks[positions]).all()
    assert (some_ordinals == ordinals[positions]).all()
    for position in positions[:50]:
        before = np.bincount(tasks[:position], minlength=3)
        assert (fresh.counts(int(position)) == before).all()


def test_tasks_are_shuffled_within_a_block():
    plan = IndexPlan([None, None], [1, 1], seed=2)
    tasks, _ = plan.locate(np.arange(25_600))
    # Runs of a fair coin: half of the neighbours differ; 5 standard deviations of slack.
    assert abs((tasks[1:] != tasks[:-1]).mean() - 0.5) < 5 * 0.5 / np.sqrt(tasks.size)


def test_another_seed_is_another_order():
    first, second = (IndexPlan([1000], [1.0], seed) for seed in (1, 2))
    same = first.index(0, np.arange(1000)) == second.index(0, np.arange(1000))
    assert same.sum() < 12


def test_order_is_fixed_for_ever():
    # SplitMix64's finaliser of the golden-ratio increment: the first output of its reference
    # implementation seeded with 0 (Vigna, splitmix64.c).
    assert int(hash_words(0)[0]) == 0xE220A8397B1DCDAF


@pytest.mark.parametrize(
    "sizes,rates", [([1, 2], [1.0]), ([1], [0.0]), ([0], [1.0]), ([3, 3], [1.0, -1.0])]
)
def test_wrong_arguments(sizes, rates):
    with pytest.raises(ValueError):
        IndexPlan(sizes, rates, 0)


def test_no_index_without_a_size():
    with pytest.raises(ValueError, match="random access"):
        IndexPlan([None], [1.0], 0).index(0, np.arange(3))
