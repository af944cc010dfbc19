"""Greedy transducer decoding: the likeliest symbol at every step, for a whole batch at once.

Every row of the batch walks through its own frames inside one `lax.while_loop` over static
shapes. A step either moves a row to its next frame (blank) or emits a label and stays; a row that
has finished waits for the others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

State = Any
"""A pytree of arrays with a leading batch axis."""

Predict = Callable[[State, jax.Array], tuple[jax.Array, State]]
"""`(state, labels [batch]) -> (outputs [batch, ...], new state)`: the prediction network."""

Joint = Callable[[jax.Array, jax.Array], jax.Array]
"""`(encoded frame [batch, features], outputs [batch, ...]) -> logits [batch, vocab]`."""


class Hypotheses(NamedTuple):
    """One hypothesis an example.

    Attributes:
        tokens: Token ids without blanks, int32 `[batch, max_labels]`; `blank_id` after the end.
        lengths: Number of tokens, int32 `[batch]`.
        frames: The frame on which each token was emitted, int32 `[batch, max_labels]`; 0 after
            the end.
        scores: Natural log-probability of the path that was taken, blanks included, float32
            `[batch]`: a lower bound of the log-likelihood of the tokens over all alignments.
        truncated: Whether a row stopped early because it had more than `max_labels` to say, bool
            `[batch]`. The score of such a row is that of its path up to there, and no bound.
    """

    tokens: jax.Array
    lengths: jax.Array
    frames: jax.Array
    scores: jax.Array
    truncated: jax.Array


class _Search(NamedTuple):
    """What the loop carries; every array has a leading batch axis."""

    frame: jax.Array  # the next frame to read
    symbols: jax.Array  # labels emitted on that frame
    outputs: jax.Array  # of the prediction network after the last label
    state: State
    hypotheses: Hypotheses


def greedy_decode(
    predict: Predict,
    joint: Joint,
    initial_state: State,
    encoded: jax.Array,
    frame_lengths: jax.Array,
    *,
    max_labels: int,
    blank_id: int = 0,
    max_symbols_per_frame: int = 4,
) -> Hypotheses:
    """Takes the likeliest symbol at every step of the transducer.

    After `max_symbols_per_frame` labels on a frame the blank is taken, and scored, whatever else
    is likelier: an untrained model cannot loop for ever. A batch gives what its examples give
    alone. The prediction network sees `blank_id` first and then every emitted label; it runs only
    in steps in which some row emits.

    Args:
        predict: The prediction network; the new state must have the structure, the shapes and the
            types of the old one.
        joint: The joint network.
        initial_state: State of the prediction network before the first call.
        encoded: Encoder output, `[batch, frames, features]`.
        frame_lengths: Valid frames of each example, `[batch]`; zero gives an empty hypothesis
            with score 0.
        max_labels: Room for tokens. A row that wants more stops there and is marked `truncated`.
        blank_id: The token id of the blank.
        max_symbols_per_frame: At most so many labels on one frame.

    Returns:
        The hypotheses.

    Raises:
        ValueError: If a cap is below 1 or the shapes do not belong together.
    """
    if max_labels < 1 or max_symbols_per_frame < 1:
        raise ValueError(
            "max_labels and max_symbols_per_frame must be at least 1, not "
            f"{max_labels} and {max_symbols_per_frame}"
        )
    if encoded.ndim != 3 or encoded.shape[1] < 1 or frame_lengths.shape != encoded.shape[:1]:
        raise ValueError(
            "encoded must be [batch, frames, features] and frame_lengths [batch], not "
            f"{encoded.shape} and {frame_lengths.shape}"
        )
    batch, frames, _ = encoded.shape
    frame_lengths = jnp.minimum(frame_lengths, frames)
    slots = jnp.arange(max_labels)

    def unfinished(search: _Search) -> jax.Array:
        return (search.frame < frame_lengths) & ~search.hypotheses.truncated

    def step(search: _Search) -> _Search:
        found = search.hypotheses
        index = jnp.minimum(search.frame, frames - 1)
        encoded_frame = jnp.take_along_axis(encoded, index[:, None, None], axis=1)[:, 0]
        logits = joint(encoded_frame, search.outputs).astype(jnp.float32)
        log_probabilities = jax.nn.log_softmax(logits, axis=-1)

        best = jnp.argmax(log_probabilities, axis=-1).astype(jnp.int32)
        symbol = jnp.where(search.symbols >= max_symbols_per_frame, blank_id, best)
        is_label = unfinished(search) & (symbol != blank_id)
        emits = is_label & (found.lengths < max_labels)
        advances = unfinished(search) & (symbol == blank_id)

        gain = jnp.take_along_axis(log_probabilities, symbol[:, None], axis=-1)[:, 0]
        here = emits[:, None] & (slots == found.lengths[:, None])
        found = Hypotheses(
            tokens=jnp.where(here, symbol[:, None], found.tokens),
            lengths=found.lengths + emits,
            frames=jnp.where(here, index[:, None], found.frames),
            scores=found.scores + jnp.where(emits | advances, gain, 0.0),
            truncated=found.truncated | (is_label & ~emits),
        )

        def feed() -> tuple[jax.Array, State]:
            new = predict(search.state, symbol)
            return jax.tree.map(
                lambda n, o: jnp.where(_align(emits, n), n, o), new, (search.outputs, search.state)
            )

        # Most steps of most batches only advance: the prediction network can rest.
        outputs, state = jax.lax.cond(jnp.any(emits), feed, lambda: (search.outputs, search.state))
        return _Search(
            frame=search.frame + advances,
            symbols=jnp.where(advances, 0, search.symbols + emits),
            outputs=outputs,
            state=state,
            hypotheses=found,
        )

    zeros = jnp.zeros(batch, jnp.int32)
    outputs, state = predict(initial_state, jnp.full(batch, blank_id, jnp.int32))
    start = _Search(
        frame=zeros,
        symbols=zeros,
        outputs=outputs,
        state=state,
        hypotheses=Hypotheses(
            tokens=jnp.full((batch, max_labels), blank_id, jnp.int32),
            lengths=zeros,
            frames=jnp.zeros((batch, max_labels), jnp.int32),
            scores=jnp.zeros(batch, jnp.float32),
            truncated=jnp.zeros(batch, bool),
        ),
    )
    return jax.lax.while_loop(lambda s: jnp.any(unfinished(s)), step, start).hypotheses


def _align(rows: jax.Array, like: jax.Array) -> jax.Array:
    """Adds axes to a mask over rows, `[batch]`, until it broadcasts against `[batch, ...]`."""
    return rows.reshape(rows.shape + (1,) * (like.ndim - rows.ndim))
