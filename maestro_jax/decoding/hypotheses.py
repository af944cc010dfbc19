"""What the searches take and give back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

State = Any
"""A pytree of arrays with a leading axis of rows."""

Predict = Callable[[State, jax.Array], tuple[jax.Array, State]]
"""`(state, labels [rows]) -> (outputs [rows, ...], new state)`: the prediction network.

The new state must have the structure, the shapes and the types of the old one.
"""

Joint = Callable[[jax.Array, jax.Array], jax.Array]
"""`(encoded frames [rows, features], outputs [rows, ...]) -> logits [rows, vocab]`."""


class Hypotheses(NamedTuple):
    """What was found: by the greedy searches one an example, by the beam searches the best few.

    The shapes are those of a greedy search. Those of a beam search have an axis more after the
    first, `[batch, beam, ...]`: the best hypothesis first, and after the last one empty places
    with scores of minus infinity.

    The words are the transducer's. With CTC an arc is the symbol of a frame, and a token that lasts
    has that of its first one. An attention decoder has no frames and no blanks: `frames` are 0,
    `scores` contain the end of the text, and `fused_scores` are normalised by length.

    Attributes:
        tokens: Token ids without blanks, int32 `[batch, max_labels]`; `blank_id` after the end.
        lengths: Number of tokens, int32 `[batch]`.
        frames: The frame on which each token was emitted, on the likeliest path that the search
            saw, int32 `[batch, max_labels]`; 0 after the end.
        token_scores: Natural log-probability of each token's arc on that path, float32
            `[batch, max_labels]`; 0 after the end. The transducer's alone: no language model is
            in it, and no blank.
        scores: Natural log-probability of the tokens under the transducer, blanks included,
            float32 `[batch]`: over all alignments that the search saw, so a lower bound of the
            log-likelihood. The greedy search sees one.
        fused_scores: What ranks hypotheses, float32 `[batch]`: `scores`, and what
            `maestro_jax.decoding.fusion` adds; without fusion the same numbers.
        truncated: Whether there was more to say than `max_labels`, bool `[batch]`: a label was
            likelier than the blank when there was no room. From there on only blanks are taken,
            so that the scores are still those of a path to the last frame.
    """

    tokens: jax.Array
    lengths: jax.Array
    frames: jax.Array
    token_scores: jax.Array
    scores: jax.Array
    fused_scores: jax.Array
    truncated: jax.Array


def check_arguments(
    encoded: jax.Array, frame_lengths: jax.Array, max_labels: int, max_symbols_per_frame: int
) -> None:
    """Refuses what no search can run on.

    Args:
        encoded: Should be `[batch, frames, features]` with a frame at least.
        frame_lengths: Should be `[batch]`.
        max_labels: Should be 1 at least.
        max_symbols_per_frame: Should be 1 at least.

    Raises:
        ValueError: Naming what is wrong.
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


def where_rows(rows: jax.Array, yes: Any, no: Any) -> Any:
    """Chooses whole rows of two pytrees.

    Args:
        rows: Bool `[batch]` or `[batch, beam]`.
        yes: Arrays that begin with the axes of `rows`: taken where it is true.
        no: The same structure and shapes.

    Returns:
        The chosen rows, in the structure of both.
    """

    def choose(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.where(rows.reshape(rows.shape + (1,) * (a.ndim - rows.ndim)), a, b)

    return jax.tree.map(choose, yes, no)
