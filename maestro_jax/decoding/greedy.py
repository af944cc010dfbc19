"""Greedy transducer decoding: the likeliest symbol at every step, for a whole batch at once.

Every row of the batch walks through its own frames inside one `lax.while_loop` over static
shapes. An iteration looks at the next few frames of a row with the same state of the prediction
network, passes the blanks before the first label there, and emits that label. The blanks between
two labels so cost a wider matrix product instead of iterations of their own, and the result is that
of a walk frame by frame. It is the label-looping of Xu et al. 2024 (arXiv 2406.06220) with a
bounded inner loop: rows do not wait for the row with the longest silence.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from maestro_jax.decoding.hypotheses import (
    Hypotheses,
    Joint,
    Predict,
    State,
    check_arguments,
    where_rows,
)
from maestro_jax.losses.transducer_arcs import check_blank, log_probabilities


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
    hat: bool = False,
    one_label_per_frame: bool = False,
    window: int = 4,
) -> Hypotheses:
    """Takes the likeliest symbol at every step of the transducer.

    Of equally likely symbols the blank wins, then the lowest token id. After
    `max_symbols_per_frame` labels on a frame the blank is taken, and scored, whatever else is
    likelier: an untrained model cannot loop for ever. A batch gives what its examples give alone.
    The prediction network sees `blank_id` first and then every emitted label.

    Args:
        predict: The prediction network.
        joint: The joint network.
        initial_state: State of the prediction network before the first call, for `batch` rows.
        encoded: Encoder output, `[batch, frames, features]`.
        frame_lengths: Valid frames of each example, `[batch]`; zero gives an empty hypothesis
            with score 0.
        max_labels: Room for tokens; who wants more gets blanks and is marked `truncated`.
        blank_id: The token id of the blank.
        max_symbols_per_frame: At most so many labels on one frame.
        hat: The factorisation that the model was trained with (see `losses.transducer_arcs`).
        one_label_per_frame: A label consumes its frame, as the blank does.
        window: Frames that an iteration looks at: speed, not the result, depends on it.

    Returns:
        The hypotheses, `[batch, ...]`.

    Raises:
        ValueError: If a number is below 1 or the shapes do not belong together.
    """
    check_arguments(encoded, frame_lengths, max_labels, max_symbols_per_frame)
    if window < 1:
        raise ValueError(f"window must be at least 1, not {window}")
    batch, frames, _ = encoded.shape
    frame_lengths = jnp.minimum(frame_lengths, frames)
    slots = jnp.arange(max_labels)
    ahead = jnp.arange(window)

    def unfinished(search: _Search) -> jax.Array:
        return search.frame < frame_lengths

    def step(search: _Search) -> _Search:
        found = search.hypotheses
        frame = search.frame[:, None] + ahead
        index = jnp.minimum(frame, frames - 1)
        encoded_frames = jnp.take_along_axis(encoded, index[..., None], axis=1)
        outputs = jnp.broadcast_to(
            search.outputs[:, None], (batch, window, *search.outputs.shape[1:])
        )
        logits = joint(
            encoded_frames.reshape(batch * window, -1),
            outputs.reshape(batch * window, *outputs.shape[2:]),
        )
        vocab = logits.shape[-1]
        check_blank(blank_id, vocab)
        scores = log_probabilities(logits, blank_id=blank_id, hat=hat)
        scores = scores.reshape(batch, window, vocab)
        blank = scores[..., blank_id]
        labels = jnp.where(jnp.arange(vocab) == blank_id, -jnp.inf, scores)
        label, best = jnp.argmax(labels, axis=-1), jnp.max(labels, axis=-1)

        capped = (search.symbols >= max_symbols_per_frame)[:, None] & (ahead == 0)
        wants = (frame < frame_lengths[:, None]) & (best > blank) & ~capped
        full = (found.lengths >= max_labels)[:, None]
        emits = wants & ~full
        emitting = jnp.any(emits, axis=1)
        first = jnp.where(emitting, jnp.argmax(emits, axis=1), window)
        passed = (ahead < first[:, None]) & (frame < frame_lengths[:, None])
        chosen = (ahead == first[:, None]) & emitting[:, None]
        symbol = jnp.sum(jnp.where(chosen, label, 0), axis=1).astype(jnp.int32)
        gain = jnp.sum(jnp.where(chosen, best, 0.0), axis=1)

        here = emitting[:, None] & (slots == found.lengths[:, None])
        on_frame = search.frame + first.astype(jnp.int32)
        total = found.scores + gain + jnp.sum(jnp.where(passed, blank, 0.0), axis=1)
        found = Hypotheses(
            tokens=jnp.where(here, symbol[:, None], found.tokens),
            lengths=found.lengths + emitting,
            frames=jnp.where(here, on_frame[:, None], found.frames),
            token_scores=jnp.where(here, gain[:, None], found.token_scores),
            scores=total,
            fused_scores=total,
            truncated=found.truncated | jnp.any(wants & full, axis=1),
        )

        def feed() -> tuple[jax.Array, State]:
            new = predict(search.state, symbol)
            return where_rows(emitting, new, (search.outputs, search.state))

        # In a silence of all rows the prediction network can rest.
        outputs, state = jax.lax.cond(
            jnp.any(emitting), feed, lambda: (search.outputs, search.state)
        )
        frame_taken = emitting & one_label_per_frame
        symbols = jnp.where(first == 0, search.symbols + 1, 1)
        return _Search(
            frame=search.frame + jnp.sum(passed, axis=1, dtype=jnp.int32) + frame_taken,
            symbols=jnp.where(emitting & ~frame_taken, symbols, 0),
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
            token_scores=jnp.zeros((batch, max_labels), jnp.float32),
            scores=jnp.zeros(batch, jnp.float32),
            fused_scores=jnp.zeros(batch, jnp.float32),
            truncated=jnp.zeros(batch, bool),
        ),
    )
    return jax.lax.while_loop(lambda s: jnp.any(unfinished(s)), step, start).hypotheses
