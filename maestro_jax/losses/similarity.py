"""Computes similarities of vectors, and the accuracy of retrieval by similarity.

Frame j of the speech and frame j of the resampled text belong together. For every frame of one
modality, `retrieval_accuracy` looks up the most similar frame (by cosine) of the other: a hit is
frame j itself, or, more leniently, any frame of the same token. The accuracy of encoders that know
nothing of each other, chance, is computed along with each accuracy.
"""

from __future__ import annotations

import flax
import jax
import jax.numpy as jnp

from maestro_jax.losses.reduction import Weighted
from maestro_jax.precision import EXACT

SCOPES = ("utterance", "batch")


def standardize(x: jax.Array) -> jax.Array:
    """Normalises each frame of `[batch, frames, features]` to mean 0 and variance 1, in float32."""
    x = x.astype(jnp.float32)
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    # 1e-5 bounds the gradient of constant frames, such as those of the padding.
    return centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + 1e-5)


def cosine_similarity(a: jax.Array, b: jax.Array) -> jax.Array:
    """Computes the cosine of the angle between vectors along the last axis, in float32."""
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    product = jnp.sum(a * b, axis=-1)
    squares = jnp.sum(a * a, axis=-1) * jnp.sum(b * b, axis=-1)
    # The root of the product and not the product of roots: one rsqrt, and 0 for a zero vector.
    return product * jax.lax.rsqrt(squares + 1e-8)


def l2_normalize(x: jax.Array, epsilon: float = 1e-8) -> jax.Array:
    """Scales vectors along the last axis to length one, in float32.

    Args:
        x: `[..., features]`.
        epsilon: Added to the squared length. The default keeps the gradient near a zero vector
            small; without gradients, 1e-30 leaves lengths exact and still maps zero to zero.

    Returns:
        float32 `[..., features]`.
    """
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + epsilon)


@flax.struct.dataclass
class Retrieval:
    """Top-1 retrieval as (total, count) pairs; total over count is an accuracy from 0 to 1.

    All counts are the number of queries. Pairs of several batches can be added up before division.

    Attributes:
        frame_speech_to_text: Speech frames that retrieve their own text frame.
        frame_text_to_speech: Text frames that retrieve their own speech frame.
        token_speech_to_text: Speech frames that retrieve a text frame of their own token.
        token_text_to_speech: Text frames that retrieve a speech frame of their own token.
        frame_chance: The value of the first two if all frames were equally similar.
        token_chance: The value of the other two if all frames were equally similar.
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
    """Computes top-1 retrieval between matched frames in both directions, and chance levels.

    If several candidates are equally similar, as when an encoder gives every frame the same vector,
    a query counts as the fraction of them that are hits: such an encoder scores chance.

    Args:
        speech: `[batch, frames, features]`, such as e_s.
        text: `[batch, frames, features]`, matched with `speech` by index, such as ê_t.
        token: `[batch, frames]` int32, the position of each frame's token in its text
            (`FrameIndex.token`), not its id: the second "e" of a text is another token than the
            first, and so is the same position in another row.
        mask: `[batch, frames]` bool, the frames that are queries and candidates.
        scope: The candidates: frames of the same `utterance`, or of the whole `batch`. The latter
            holds (batch x frames)^2 similarities in memory.

    Returns:
        Six (total, count) pairs, float32; no gradient flows through them.

    Raises:
        ValueError: The scope is unknown.
    """
    if scope not in SCOPES:
        raise ValueError(f"Unknown retrieval scope {scope!r}; choose one of {SCOPES}.")
    batch, frames, _ = speech.shape
    row = jnp.broadcast_to(jnp.arange(batch)[:, None], token.shape)
    speech, text = (l2_normalize(jax.lax.stop_gradient(x), 1e-30) for x in (speech, text))
    if scope == "batch":
        # One row of all frames.
        speech, text = (side.reshape(1, batch * frames, -1) for side in (speech, text))
        token, row, mask = (array.reshape(1, batch * frames) for array in (token, row, mask))

    # [batch, queries, candidates] from here on.
    pairs = mask[:, :, None] & mask[:, None, :]
    same_frame = jnp.eye(mask.shape[1], dtype=bool)[None] & pairs
    same_token = (
        (token[:, :, None] == token[:, None, :]) & (row[:, :, None] == row[:, None, :]) & pairs
    )
    similarity = jnp.einsum("bsd,btd->bst", speech, text, precision=EXACT)
    queries = jnp.sum(mask.astype(jnp.float32))

    def hit_rate(similarity: jax.Array, targets: jax.Array) -> Weighted:
        """Counts hits over the last axis; of several best candidates, the fraction of targets."""
        # The maximum over no candidate is -inf, which then equals every candidate; `& pairs` takes
        # those out.
        candidates = jnp.where(pairs, similarity, -jnp.inf)
        best = (candidates == jnp.max(candidates, axis=-1, keepdims=True)) & pairs
        # Ties share the hit. All candidates tie for `uniform`, which makes this rate the chance
        # level.
        hits = jnp.sum(best & targets, axis=-1) / jnp.maximum(jnp.sum(best, axis=-1), 1)
        return jnp.sum(hits), queries

    # Both masks are symmetric, so that one serves both directions.
    uniform, transposed = jnp.zeros_like(similarity), jnp.swapaxes(similarity, 1, 2)
    return Retrieval(
        frame_speech_to_text=hit_rate(similarity, same_frame),
        frame_text_to_speech=hit_rate(transposed, same_frame),
        token_speech_to_text=hit_rate(similarity, same_token),
        token_text_to_speech=hit_rate(transposed, same_token),
        frame_chance=hit_rate(uniform, same_frame),
        token_chance=hit_rate(uniform, same_token),
    )
