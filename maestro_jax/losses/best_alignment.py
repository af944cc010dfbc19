"""Computes the consistency of speech and text under their best monotonic alignment.

Peyser et al. 2023, "Improving Joint Speech-Text Representations Without Alignment" (arXiv
2308.06125): a consistency loss may disregard the lengths of the two sequences and assume the
alignment under which they are closest. With `d[t, n]` the distance of speech frame `t` and text
position `n`::

    L = min over alignments A of the sum over (t, n) in A of d[t, n]

An alignment is a path from the first frame and position to the last of both that moves on by a
frame, by a position or by both: it is monotonic and leaves neither a frame nor a position out,
whichever sequence is longer (dynamic time warping, Sakoe and Chiba 1978)::

    cost[t, n] = d[t, n] + min(cost[t - 1, n - 1], cost[t - 1, n], cost[t, n - 1])

The paper leaves to the reader which steps an alignment may take and how paths of unequal length are
averaged; here the sum is divided by the length of the longer sequence, which is the number of pairs
in the shortest path and does not depend on the network.

As in `maestro_jax.losses.transducer_lattice`, a scan runs over anti-diagonals, each of which
depends on the two before it. No gradient flows through the search: where the best path is unique,
the gradient of the minimum is that of the distances along it.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from maestro_jax.losses.distances import distances, pairwise_distances
from maestro_jax.losses.reduction import Weighted
from maestro_jax.losses.transducer_lattice import skew

FAR = 1e30
"""Distance of what may not be matched: a path through it is longer than any other."""


class WarpingPath(NamedTuple):
    """The best monotonic path, by its anti-diagonals; a path visits each at most once.

    Attributes:
        frames: Frame of each pair, int32 `[batch, frames + positions - 1]`; 0 where there is none.
        positions: Its position in the text, in the same layout.
        visited: Whether the path visits the anti-diagonal, bool, in the same layout.
    """

    frames: jax.Array
    positions: jax.Array
    visited: jax.Array


def best_alignment_loss(
    speech: jax.Array,
    text: jax.Array,
    speech_lengths: jax.Array,
    text_lengths: jax.Array,
    *,
    form: str = "mse",
) -> Weighted:
    """Computes the distance of speech and text along their best alignment.

    Args:
        speech: `[batch, frames, features]`.
        text: `[batch, positions, features]`, at any rate.
        speech_lengths: Valid frames, `[batch]`.
        text_lengths: Valid positions, `[batch]`.
        form: One of `maestro_jax.losses.distances.DISTANCES`.

    Returns:
        Total distance, and the count of the longer side of every pair; a pair of which one side is
        empty does not count.
    """
    no_gradient = jax.lax.stop_gradient
    # [batch, frames, positions]
    costs = pairwise_distances(no_gradient(speech), no_gradient(text), form)
    path = best_path(costs, speech_lengths, text_lengths)
    # [batch, frames + positions - 1, features]: the pairs alone are compared with a gradient.
    matched_speech = jnp.take_along_axis(speech, path.frames[:, :, None], axis=1)
    matched_text = jnp.take_along_axis(text, path.positions[:, :, None], axis=1)
    along_path = distances(matched_speech, matched_text, form)
    total = jnp.sum(jnp.where(path.visited, along_path, 0.0))
    longer = jnp.maximum(speech_lengths, text_lengths)
    both = (speech_lengths > 0) & (text_lengths > 0)
    return total, jnp.sum(jnp.where(both, longer, 0)).astype(jnp.float32)


def best_path(
    costs: jax.Array, frame_lengths: jax.Array, position_lengths: jax.Array
) -> WarpingPath:
    """Finds the monotonic path of the least total cost.

    Of equally cheap paths it is the one that, from the end, first moves on in both sequences, then
    in the frames alone.

    Args:
        costs: `[batch, frames, positions]`.
        frame_lengths: Valid frames, `[batch]`.
        position_lengths: Valid positions, `[batch]`.

    Returns:
        The path, without a gradient; an example of which one side is empty has none.
    """
    _, frames, positions = costs.shape
    costs = jax.lax.stop_gradient(costs)
    valid = (jnp.arange(frames)[:, None] < frame_lengths[:, None, None]) & (
        jnp.arange(positions) < position_lengths[:, None, None]
    )
    # [diagonals, batch, positions]: entry [k, b, n] is the pair of frame k - n and position n.
    diagonals = skew(jnp.where(valid, costs, FAR), FAR)
    count = diagonals.shape[0]

    def forward(
        carry: tuple[jax.Array, jax.Array], diagonal: jax.Array
    ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        before, both_moves = carry  # [batch, positions] each
        position_moves = _move_on(before)
        best = jnp.minimum(jnp.minimum(both_moves, before), position_moves)
        # 0: both sequences moved on, 1: the frame did, 2: the position did.
        move = jnp.where(both_moves == best, 0, jnp.where(before == best, 1, 2))
        return (jnp.minimum(diagonal + best, FAR), position_moves), move.astype(jnp.int8)

    # Before the first pair nothing has been paid, which stands where both sequences moved on to it.
    far = jnp.full_like(diagonals[0], FAR)
    _, moves = jax.lax.scan(forward, (far, far.at[:, 0].set(0.0)), diagonals)

    def backward(
        carry: tuple[jax.Array, jax.Array], inputs: tuple[jax.Array, jax.Array]
    ) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
        position, visits = carry  # [batch] each
        index, diagonal_moves = inputs
        visited = index == visits
        move = jnp.take_along_axis(diagonal_moves, position[:, None], axis=1)[:, 0]
        # The diagonal that the path visits before this one.
        earlier = jnp.where(move == 0, index - 2, index - 1)
        before = jnp.maximum(position - (move != 1), 0)
        following = (jnp.where(visited, before, position), jnp.where(visited, earlier, visits))
        return following, (position, visited)

    end = frame_lengths + position_lengths - 2
    empty = (frame_lengths < 1) | (position_lengths < 1)
    last = jnp.maximum(position_lengths - 1, 0).astype(jnp.int32)
    start = (last, jnp.where(empty, -1, end).astype(jnp.int32))
    index = jnp.arange(count, dtype=jnp.int32)
    _, (found, visited) = jax.lax.scan(backward, start, (index, moves), reverse=True)
    at = jnp.where(visited, found, 0).T  # [batch, diagonals]
    visited = visited.T
    return WarpingPath(
        frames=jnp.where(visited, index[None, :] - at, 0), positions=at, visited=visited
    )


def _move_on(row: jax.Array) -> jax.Array:
    """Moves entry `n` of `[batch, positions]` to `n + 1`; nothing leads to the first position."""
    return jnp.concatenate([jnp.full_like(row[:, :1], FAR), row[:, :-1]], axis=1)
