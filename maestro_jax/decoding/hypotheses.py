"""The types that all searches share, and operations on beams.

Beams are arrays of `[batch, beam, ...]`. The operations stay within each row of the batch, so that
a batch that is split over devices stays split.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

NEG_INF = -jnp.inf
"""Score of an empty place in a beam."""

State = Any
"""A pytree of arrays with a leading axis of rows."""

Predict = Callable[[State, jax.Array], tuple[jax.Array, State]]
"""`(state, labels [rows]) -> (outputs [rows, ...], new state)`: the prediction network.

The new state must have the structure, the shapes and the dtypes of the old one.
"""

Joint = Callable[[jax.Array, jax.Array], jax.Array]
"""`(encoded frames [rows, features], outputs [rows, ...]) -> logits [rows, vocab]`."""


class Hypotheses(NamedTuple):
    """The result of a search: one hypothesis per example (greedy), or the best few (beam).

    The shapes below are those of greedy search. Beam searches insert an axis after the first,
    `[batch, beam, ...]`, with the best hypothesis first; empty places come last and have scores of
    minus infinity.

    The description uses the terms of a transducer. With CTC an arc is the symbol of a frame, and a
    token that spans frames has the arc of its first one. An attention decoder has neither frames
    nor blanks: `frames` are 0, `scores` include the end of sequence, and `fused_scores` are
    normalised by length.

    Attributes:
        tokens: Token ids without blanks, int32 `[batch, max_labels]`; `blank_id` after the end.
        lengths: Number of tokens, int32 `[batch]`.
        frames: Frame that emitted each token, on the likeliest path that the search visited,
            int32 `[batch, max_labels]`; 0 after the end.
        token_scores: Natural log-probability of each token's arc on that path, float32
            `[batch, max_labels]`; 0 after the end. Neither language models nor blanks are included.
        scores: Natural log-probability of the tokens under the decoder, blanks included, float32
            `[batch]`: over all alignments that the search visited, and therefore a lower bound of
            the log-likelihood. Greedy search visits one.
        fused_scores: Scores by which hypotheses are ranked, float32 `[batch]`: `scores` plus the
            terms of `maestro_jax.decoding.fusion`; without fusion the same numbers.
        truncated: Whether `max_labels` was too small, bool `[batch]`: a label was likelier than the
            blank when there was no room for it. From there on only blanks are taken, so that scores
            are still those of a path to the last frame.
    """

    tokens: jax.Array
    lengths: jax.Array
    frames: jax.Array
    token_scores: jax.Array
    scores: jax.Array
    fused_scores: jax.Array
    truncated: jax.Array


def no_hypotheses(shape: tuple[int, ...], max_labels: int, pad_id: int) -> Hypotheses:
    """Returns empty places of a beam: no tokens, scores of minus infinity.

    Args:
        shape: The leading axes, `(batch, beam)`.
        max_labels: Room for tokens.
        pad_id: Token id that fills the room.
    """
    return Hypotheses(
        tokens=jnp.full((*shape, max_labels), pad_id, jnp.int32),
        lengths=jnp.zeros(shape, jnp.int32),
        frames=jnp.zeros((*shape, max_labels), jnp.int32),
        token_scores=jnp.zeros((*shape, max_labels), jnp.float32),
        scores=jnp.full(shape, NEG_INF, jnp.float32),
        fused_scores=jnp.full(shape, NEG_INF, jnp.float32),
        truncated=jnp.zeros(shape, bool),
    )


def check_arguments(
    encoded: jax.Array, frame_lengths: jax.Array, max_labels: int, max_symbols_per_frame: int
) -> None:
    """Checks the arguments that searches have in common.

    Args:
        encoded: Must be `[batch, frames, features]`, with at least one frame.
        frame_lengths: Must be `[batch]`.
        max_labels: Must be at least 1.
        max_symbols_per_frame: Must be at least 1.

    Raises:
        ValueError: If one of them is not as required.
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
        rows: Bool, `[batch]` or `[batch, beam]`.
        yes: Arrays whose leading axes are those of `rows`; taken where it is True.
        no: Arrays of the same structure and shapes; taken where it is False.

    Returns:
        The chosen rows, in the same structure.
    """

    def choose(a: jax.Array, b: jax.Array) -> jax.Array:
        # Axes of one at the end, as many as the array has more than `rows`.
        return jnp.where(rows.reshape(rows.shape + (1,) * (a.ndim - rows.ndim)), a, b)

    return jax.tree.map(choose, yes, no)


def add_beam_dim(tree: Any, beam_size: int) -> Any:
    """Repeats every row of a pytree: `[batch, ...]` becomes `[batch, beam, ...]`."""
    return jax.tree.map(
        lambda x: jnp.broadcast_to(x[:, None], (len(x), beam_size, *x.shape[1:])), tree
    )


def flatten_beam_dim(tree: Any) -> Any:
    """Converts `[batch, beam, ...]` to `[batch * beam, ...]`, as networks take it."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)


def unflatten_beam_dim(tree: Any, shape: tuple[int, int]) -> Any:
    """Converts `[batch * beam, ...]` back to `[batch, beam, ...]`."""
    return jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), tree)


def gather_beams(tree: Any, index: jax.Array) -> Any:
    """Picks hypotheses within each row.

    Args:
        tree: Arrays of `[batch, beam, ...]`.
        index: Which to pick, int `[batch, places]`.

    Returns:
        Arrays of `[batch, places, ...]`, in the same structure.
    """
    return jax.tree.map(
        lambda x: jnp.take_along_axis(x, index.reshape(index.shape + (1,) * (x.ndim - 2)), axis=1),
        tree,
    )


def last_tokens(tokens: jax.Array, lengths: jax.Array) -> jax.Array:
    """Returns the last token of hypotheses, `[batch, beam]`; 0 for those without tokens.

    Args:
        tokens: `[batch, beam, max_labels]`.
        lengths: `[batch, beam]`.
    """
    # A masked sum in place of a gather leaves a sharded batch sharded.
    is_last = jnp.arange(tokens.shape[-1]) == lengths[..., None] - 1
    return jnp.sum(jnp.where(is_last, tokens, 0), axis=-1)


def parents(tokens: jax.Array, lengths: jax.Array, alive: jax.Array) -> jax.Array:
    """Finds the pairs in which hypothesis `i` is hypothesis `j` without its last token.

    Args:
        tokens: `[batch, beam, max_labels]`.
        lengths: `[batch, beam]`.
        alive: `[batch, beam]` bool, False for empty places.

    Returns:
        Bool, `[batch, i, j]`.
    """
    same = tokens[:, :, None] == tokens[:, None]  # [batch, i, j, max_labels]
    slots = jnp.arange(tokens.shape[-1])
    # Compared up to the length of i: what stands behind its end is room.
    same = jnp.all(same | (slots >= lengths[:, :, None, None]), axis=-1)
    longer = lengths[:, None, :] == lengths[:, :, None] + 1
    return same & longer & alive[:, :, None] & alive[:, None, :]


def top_k(x: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """Finds the `count` largest entries of the last axis; equal ones in the order of their index.

    `jax.lax.top_k` gathers a batch that is split over devices (as of jax 0.10.2). Repeated maxima
    do not, and cost no more for the few entries of a beam.

    Args:
        x: `[..., n]`.
        count: At most `n`.

    Returns:
        Values and int32 indices, `[..., count]`.
    """
    places = jnp.arange(x.shape[-1], dtype=jnp.int32)

    def largest(remaining: jax.Array, _: None) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        best = jnp.max(remaining, axis=-1, keepdims=True)
        # Not argmax, which XLA does not vectorise on CPU.
        place = jnp.min(
            jnp.where(remaining == best, places, x.shape[-1] - 1), axis=-1, keepdims=True
        )
        return jnp.where(places == place, NEG_INF, remaining), (best[..., 0], place[..., 0])

    _, (values, indices) = jax.lax.scan(largest, x, None, length=count, unroll=min(count, 8))
    return jnp.moveaxis(values, 0, -1), jnp.moveaxis(indices, 0, -1)
