"""Greedy transducer decoding, batched: takes the likeliest symbol at every step.

Every row of the batch advances through its own frames in one `lax.while_loop` over static shapes.
An iteration applies the joint network to the next few frames of a row with the current output of
the prediction network, skips the blanks before the first label, and emits that label. The blanks
between two labels thus cost a wider matrix product and no iterations of their own, and the result
is that of going frame by frame. This is the label-looping of Xu et al. 2024 (arXiv 2406.06220) with
a bounded inner loop: rows do not wait for the row with the longest silence.
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
    no_hypotheses,
    where_rows,
)
from maestro_jax.losses.transducer_arcs import check_blank, log_probabilities


class _Search(NamedTuple):
    """The state of the loop; every array has a leading batch axis."""

    frame: jax.Array  # The next frame to read.
    symbols: jax.Array  # Labels emitted on that frame.
    outputs: jax.Array  # Outputs of the prediction network after the last label.
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
    `max_symbols_per_frame` labels on a frame the blank is taken and scored even if a label is
    likelier, so that an untrained model cannot loop forever. The result of an example does not
    depend on the rest of its batch. The prediction network reads `blank_id` first and then every
    emitted label.

    Args:
        predict: The prediction network.
        joint: The joint network.
        initial_state: State of the prediction network before the first call, for `batch` rows.
        encoded: Encoder output, `[batch, frames, features]`.
        frame_lengths: Valid frames of each example, `[batch]`; an example of zero frames has the
            empty hypothesis with score 0.
        max_labels: Room for tokens. A hypothesis that needs more takes blanks and is marked
            `truncated`.
        blank_id: Token id of the blank.
        max_symbols_per_frame: Largest number of labels on one frame.
        hat: Whether the model was trained with the hybrid autoregressive factorisation (see
            `losses.transducer_arcs`).
        one_label_per_frame: Whether a label consumes its frame, as the blank does.
        window: Frames per iteration; it affects the speed, not the result.

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
        hypotheses = search.hypotheses
        # Rows are on frames of their own.
        frame = search.frame[:, None] + ahead  # [batch, window]
        # Frames behind the last read it again, and `valid` discards what they say.
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

        # The first frame of the window whose likeliest symbol is a label emits it; the labels that
        # `symbols` counts are on the first frame of the window.
        valid = frame < frame_lengths[:, None]
        is_capped = (search.symbols >= max_symbols_per_frame)[:, None] & (ahead == 0)
        is_label = valid & (best > blank) & ~is_capped
        is_full = (hypotheses.lengths >= max_labels)[:, None]
        emits = is_label & ~is_full
        emitting = jnp.any(emits, axis=1)  # [batch]
        # argmax finds the first True; without any, all of the window is skipped.
        first = jnp.where(emitting, jnp.argmax(emits, axis=1), window)
        # Frames before it take their blank.
        skipped = (ahead < first[:, None]) & valid
        emitted = (ahead == first[:, None]) & emitting[:, None]
        # At most one frame of a row emits: masked sums pick its label and score.
        symbol = jnp.sum(jnp.where(emitted, label, 0), axis=1).astype(jnp.int32)
        label_score = jnp.sum(jnp.where(emitted, best, 0.0), axis=1)

        appended = emitting[:, None] & (slots == hypotheses.lengths[:, None])
        emission_frame = search.frame + first.astype(jnp.int32)
        # A frame that emits does not take its blank yet: the next iteration reads it again with the
        # new label, unless labels consume frames.
        score = hypotheses.scores + label_score + jnp.sum(jnp.where(skipped, blank, 0.0), axis=1)
        hypotheses = Hypotheses(
            tokens=jnp.where(appended, symbol[:, None], hypotheses.tokens),
            lengths=hypotheses.lengths + emitting,
            frames=jnp.where(appended, emission_frame[:, None], hypotheses.frames),
            token_scores=jnp.where(appended, label_score[:, None], hypotheses.token_scores),
            scores=score,
            fused_scores=score,
            truncated=hypotheses.truncated | jnp.any(is_label & is_full, axis=1),
        )

        def feed() -> tuple[jax.Array, State]:
            new = predict(search.state, symbol)
            return where_rows(emitting, new, (search.outputs, search.state))

        # While no row emits a label, the prediction network need not run.
        outputs, state = jax.lax.cond(
            jnp.any(emitting), feed, lambda: (search.outputs, search.state)
        )
        consumes = emitting & one_label_per_frame
        # On the first frame of the window this is one label more, on a later one the first.
        symbols = jnp.where(first == 0, search.symbols + 1, 1)
        return _Search(
            frame=search.frame + jnp.sum(skipped, axis=1, dtype=jnp.int32) + consumes,
            symbols=jnp.where(emitting & ~consumes, symbols, 0),
            outputs=outputs,
            state=state,
            hypotheses=hypotheses,
        )

    zeros = jnp.zeros(batch, jnp.int32)
    outputs, state = predict(initial_state, jnp.full(batch, blank_id, jnp.int32))
    start = _Search(
        frame=zeros,
        symbols=zeros,
        outputs=outputs,
        state=state,
        hypotheses=no_hypotheses((batch,), max_labels, blank_id)._replace(
            scores=jnp.zeros(batch, jnp.float32), fused_scores=jnp.zeros(batch, jnp.float32)
        ),
    )
    return jax.lax.while_loop(lambda s: jnp.any(unfinished(s)), step, start).hypotheses
