"""Retrieval accuracy: do matched speech and text frames find each other among all the others?

Frame j of the speech and frame j of the resampled text belong together. For every frame of one
modality the most similar frame (cosine) of the other is looked up; that is right if it is frame j
itself, or, more leniently, any frame of the same token. Two encoders that know nothing of each
other are right by chance, which is given beside each accuracy.
"""

from __future__ import annotations

import flax
import jax
import jax.numpy as jnp

from maestro_jax.losses.reduction import Weighted
from maestro_jax.precision import EXACT

SCOPES = ("utterance", "batch")


@flax.struct.dataclass
class Retrieval:
    """Top-1 retrieval as (total, count) pairs; total over count is an accuracy from 0 to 1.

    All counts are the number of frames that looked for a partner. Pairs of several batches may be
    added up before they are divided.

    Attributes:
        frame_speech_to_text: Speech frames that found their own text frame.
        frame_text_to_speech: Text frames that found their own speech frame.
        token_speech_to_text: Speech frames that found a text frame of their own token.
        token_text_to_speech: Text frames that found a speech frame of their own token.
        frame_chance: What the first two would be if every frame were as similar as any other.
        token_chance: The same for the two of tokens.
    """

    frame_speech_to_text: Weighted
    frame_text_to_speech: Weighted
    token_speech_to_text: Weighted
    token_text_to_speech: Weighted
    frame_chance: Weighted
    token_chance: Weighted


def retrieval_accuracy(
    speech: jax.Array,
    text: jax.Array,
    token: jax.Array,
    mask: jax.Array,
    *,
    scope: str = "utterance",
) -> Retrieval:
    """Top-1 retrieval between matched frames in both directions, with chance levels.

    Where several candidates are equally similar, as when an encoder gives every frame the same
    vector, a query counts for the share of them that is right: such an encoder is right by chance.

    Args:
        speech: `[batch, frames, features]`, such as e_s.
        text: `[batch, frames, features]`, matched with `speech` by index, such as ê_t.
        token: `[batch, frames]` int32, the index within its text of each frame's token
            (`FrameIndex.token`): an instance, not a type. The second "e" of a text is another
            token than the first, and so is the same index in another row.
        mask: `[batch, frames]` bool, the frames that look and may be found.
        scope: Among which frames to look: those of the same `utterance`, or of the whole `batch`.
            The latter holds (batch x frames)^2 similarities in memory.

    Returns:
        Six (total, count) pairs, float32; no gradient flows through them.

    Raises:
        ValueError: The scope is unknown.
    """
    if scope not in SCOPES:
        raise ValueError(f"Unknown retrieval scope {scope!r}; choose one of {SCOPES}.")
    batch, frames, _ = speech.shape
    row = jnp.broadcast_to(jnp.arange(batch)[:, None], token.shape)
    speech, text = (_unit(jax.lax.stop_gradient(side)) for side in (speech, text))
    if scope == "batch":
        # One row of all frames.
        speech, text = (side.reshape(1, batch * frames, -1) for side in (speech, text))
        token, row, mask = (array.reshape(1, batch * frames) for array in (token, row, mask))

    pairs = mask[:, :, None] & mask[:, None, :]
    same_frame = jnp.eye(mask.shape[1], dtype=bool)[None] & pairs
    same_token = (
        (token[:, :, None] == token[:, None, :]) & (row[:, :, None] == row[:, None, :]) & pairs
    )
    similarity = jnp.einsum("bsd,btd->bst", speech, text, precision=EXACT)
    queries = jnp.sum(mask.astype(jnp.float32))

    def right(similarity: jax.Array, wanted: jax.Array) -> Weighted:
        """Over the last axis: among the best candidates, the share of those that are wanted."""
        candidates = jnp.where(pairs, similarity, -jnp.inf)
        best = (candidates == jnp.max(candidates, axis=-1, keepdims=True)) & pairs
        hits = jnp.sum(best & wanted, axis=-1) / jnp.maximum(jnp.sum(best, axis=-1), 1)
        return jnp.sum(hits), queries

    alike, backwards = jnp.zeros_like(similarity), jnp.swapaxes(similarity, 1, 2)
    return Retrieval(
        frame_speech_to_text=right(similarity, same_frame),
        frame_text_to_speech=right(backwards, same_frame),
        token_speech_to_text=right(similarity, same_token),
        token_text_to_speech=right(backwards, same_token),
        frame_chance=right(alike, same_frame),
        token_chance=right(alike, same_token),
    )


def _unit(x: jax.Array) -> jax.Array:
    """Vectors of length one along the last axis, in float32; zero stays zero."""
    x = x.astype(jnp.float32)
    squares = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(squares, 1e-30))
