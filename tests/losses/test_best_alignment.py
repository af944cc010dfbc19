"""The best monotonic alignment against the enumeration of all, in float64."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maestro_jax.losses.best_alignment import best_alignment_loss, best_path
from maestro_jax.losses.distances import DISTANCES, distances, pairwise_distances

FRAMES, POSITIONS, FEATURES = 5, 4, 3
# Longer speech, longer text, equally long, one of one, and the sides that are empty.
LENGTHS = np.array([(5, 4), (2, 4), (3, 3), (1, 1), (1, 4), (5, 1), (0, 3), (4, 0), (0, 0)])


@functools.cache
def paths(frames: int, positions: int) -> list[list[tuple[int, int]]]:
    """All paths from the first to the last frame and position that move on by one in either."""
    if not frames or not positions:
        return []
    if frames == positions == 1:
        return [[(0, 0)]]
    shorter = [(frames - 1, positions - 1), (frames - 1, positions), (frames, positions - 1)]
    end = (frames - 1, positions - 1)
    return [[*path, end] for size in shorter for path in paths(*size)]


def sides(dtype=np.float64):
    rng = np.random.default_rng(11)
    speech = rng.normal(size=(len(LENGTHS), FRAMES, FEATURES))
    text = rng.normal(size=(len(LENGTHS), POSITIONS, FEATURES))
    return speech.astype(dtype), text.astype(dtype)


def test_the_number_of_paths_is_delannoy_s():
    assert [len(paths(n, n)) for n in (1, 2, 3, 4)] == [1, 3, 13, 63]


@pytest.mark.parametrize("form", ["mse", "mae"])
def test_value_and_gradient_against_all_paths(form):
    speech, text = sides()

    def loss(speech, text):
        return best_alignment_loss(speech, text, *jnp.asarray(LENGTHS.T, jnp.int32), form=form)

    with jax.enable_x64(True):
        compiled = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
        (total, count), gradients = compiled(jnp.asarray(speech), jnp.asarray(text))
    expected, to_speech, to_text = 0.0, np.zeros_like(speech), np.zeros_like(text)
    for row, lengths in enumerate(LENGTHS):
        difference = speech[row][:, None] - text[row][None]  # [frames, positions, features]
        pairs = (difference**2 if form == "mse" else np.abs(difference)).mean(-1)
        slope = (2 * difference if form == "mse" else np.sign(difference)) / FEATURES
        if not (candidates := paths(*lengths)):
            continue
        best = min(candidates, key=lambda path: sum(pairs[pair] for pair in path))  # noqa: B023
        for t, n in best:
            expected += pairs[t, n]
            to_speech[row, t] += slope[t, n]
            to_text[row, n] -= slope[t, n]
    assert float(total) == pytest.approx(expected, rel=1e-12)
    np.testing.assert_allclose(gradients[0], to_speech, atol=1e-12)
    np.testing.assert_allclose(gradients[1], to_text, atol=1e-12)
    assert float(count) == sum(max(t, n) for t, n in LENGTHS if t and n)


def test_the_path_is_the_cheapest_and_the_shortest_of_equals():
    rng = np.random.default_rng(2)
    # Few different costs: many paths are equally cheap.
    costs = rng.integers(0, 3, (len(LENGTHS), FRAMES, POSITIONS)).astype(np.float32)
    # What the padding holds does not matter.
    for row, (t, n) in enumerate(LENGTHS):
        costs[row, t:], costs[row, :, n:] = -7.0, np.nan
    found = jax.jit(best_path)(costs, *jnp.asarray(LENGTHS.T))
    for row, lengths in enumerate(LENGTHS):
        visited = np.asarray(found.visited[row])
        pairs = zip(
            np.asarray(found.frames[row])[visited].tolist(),
            np.asarray(found.positions[row])[visited].tolist(),
            strict=True,
        )
        candidates = paths(*lengths)
        if not candidates:
            assert not visited.any()
            continue
        path = list(pairs)
        assert path in candidates
        cost = sum(costs[row][pair] for pair in path)
        assert cost == min(sum(costs[row][pair] for pair in other) for other in candidates)
    zero = jax.jit(best_path)(jnp.zeros((1, 4, 4)), jnp.array([4]), jnp.array([4]))
    assert int(zero.visited.sum()) == 4


@pytest.mark.parametrize("form", DISTANCES)
def test_all_pairs_are_the_pairs_one_by_one(form):
    speech, text = sides(np.float32)
    found = pairwise_distances(speech, text, form)
    one_by_one = distances(speech[:, :, None], text[:, None], form)
    np.testing.assert_allclose(found, one_by_one, atol=1e-5)
    with pytest.raises(ValueError, match="'l3'"):
        pairwise_distances(speech, text, "l3")


@pytest.mark.parametrize("form", DISTANCES)
def test_memory_grows_with_the_lattice_and_not_with_its_features(form):
    """`[batch, frames, positions, features]` would be 256 MiB."""
    batch, frames, positions, features = 4, 256, 128, 512
    shapes = [(batch, frames, features), (batch, positions, features), (batch,), (batch,)]
    arguments = [
        jax.ShapeDtypeStruct(shape, np.float32 if len(shape) > 1 else np.int32) for shape in shapes
    ]

    def loss(*arguments):
        return best_alignment_loss(*arguments, form=form)[0]

    memory = jax.jit(jax.grad(loss, (0, 1))).lower(*arguments).compile().memory_analysis()
    # Some arrays of the two sides and of pairs along the path, and of costs.
    along_path = batch * (frames + positions) * features * 4
    assert memory.temp_size_in_bytes < 8 * along_path + 8 * batch * frames * positions * 4
    assert 16 * along_path < batch * frames * positions * features * 4
