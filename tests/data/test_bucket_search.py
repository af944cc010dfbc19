"""The buckets that leave the least padding, against a search through all of them."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from maestro_jax.cli.main import main
from maestro_jax.data.bucketing import (
    LengthDistribution,
    assign_buckets,
    best_limits,
    find_buckets,
    padding,
)
from maestro_jax.errors import UserError


def cost(limits, lengths, weights):
    return sum(
        weight * min(limit for limit in limits if limit >= length)
        for length, weight in zip(lengths, weights, strict=True)
    )


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_no_other_lengths_leave_less_padding(seed, count):
    rng = np.random.default_rng(seed)
    lengths, weights = rng.integers(1, 60, 30), rng.uniform(0.1, 2, 30)
    longest, multiple = 63, 5
    found = best_limits(lengths, weights, count, longest=longest, multiple=multiple)
    assert found == sorted(set(found)) and found[-1] == longest and len(found) <= count
    assert all(limit % multiple == 0 for limit in found[:-1])
    shorter = range(multiple, longest, multiple)
    best = min(
        cost([*some, longest], lengths, weights)
        for size in range(count)
        for some in itertools.combinations(shorter, size)
    )
    assert cost(found, lengths, weights) == pytest.approx(best, rel=1e-12)


def test_no_bucket_is_empty():
    lengths = np.asarray([10, 10, 40])
    assert best_limits(lengths, np.ones(3), 5, longest=50, multiple=5) == [10, 40, 50]
    assert best_limits(lengths, np.ones(3), 2, longest=50, multiple=5) == [10, 50]


def random_distribution():
    rng = np.random.default_rng(3)
    audio = rng.integers(8000, 200_000, 400)
    text = audio // 2000 + rng.integers(0, 30, 400)
    lengths = np.stack([audio, text, text // 2], axis=1).astype(np.int32)
    return LengthDistribution(lengths=lengths, weights=rng.uniform(0.5, 2, 400))


def test_every_example_is_in_the_bucket_of_its_audio():
    """Texts of no bucket are cut so short that an example falls to a longer one."""
    distribution = random_distribution()
    found = find_buckets(
        distribution,
        count=4,
        longest=200_000,
        batch_size=16,
        batch_multiple=8,
        text_tokens=160,
        translation_tokens=100,
        characters_per_token=1.5,
    )
    limits = [
        {"audio": b.limit, "text": b.text_tokens, "translation": b.translation_tokens}
        for b in found
    ]
    buckets, over_long = assign_buckets(distribution.lengths, limits, 1.5)
    assert not over_long.any()
    by_audio = np.searchsorted([b.limit for b in found], distribution.lengths[:, 0])
    np.testing.assert_array_equal(buckets, by_audio)
    weights = distribution.weights
    assert [b.share for b in found] == pytest.approx(
        [weights[buckets == number].sum() / weights.sum() for number in range(len(found))]
    )
    padded = weights @ np.asarray([b.limit for b in found])[buckets]
    real = weights @ distribution.lengths[:, 0]
    assert padding(distribution, [b.limit for b in found]) == pytest.approx(padded / real)
    assert found[-1].batch_size == 16
    for bucket in found[:-1]:
        assert bucket.batch_size % 8 == 0
        # As long, padding included, as a batch of the longest, up to the multiple.
        assert abs(bucket.batch_size * bucket.limit - 16 * 200_000) <= 8 * bucket.limit


def test_nothing_short_enough():
    with pytest.raises(UserError, match="no example is as short as the longest bucket"):
        find_buckets(random_distribution(), count=2, longest=100, batch_size=8)


def test_the_command_prints_what_gin_reads(corpus, capsys):
    arguments = ["buckets", "tinyvox_paired", "--count=3", "--batch_size=8", "--seconds=1"]
    arguments += ["--tokens=64", f"--data_dir={corpus.root}"]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "paired/batches.Buckets:" in text and "audio_samples = (" in text
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["stream"] == "paired"
    # All of the tiny corpus' audio is shorter than 1280 samples: one bucket, beside the second.
    assert [bucket["limit"] for bucket in found["buckets"]] == [1280, 16_000]
    assert found["padding"]["one_shape"] > found["padding"]["with_buckets"] > 1


def test_a_wrong_batch_size_is_one_line(corpus, capsys):
    assert main(["buckets", "tinyvox_paired", "--batch_size=12", "--batch_multiple=8"]) == 2
    assert "--batch_size 12 is not a multiple of --batch_multiple 8" in capsys.readouterr().err
