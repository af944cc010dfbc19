"""Softmax attention over padded sequences: as a whole, in blocks of queries, or along a band.

All of them compute `softmax(query key' / sqrt(size)) value` over the keys that a query may see,
with the softmax in float32, and take and give `[batch, heads, frames, size]`. A query that may see
no key gets the average of all values, and no gradient through its weights.

`blocked_attention` never holds the weights of more than a block of queries: its gradient computes
them again from the maximum and the sum of each row, as in FlashAttention (Dao et al. 2022, arXiv
2205.14135, section 3.1). `local_attention` takes time and memory in proportion to frames times
context, as a band of blocks (Beltagy et al. 2020, arXiv 2004.05150, section 3.1).
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from maestro_jax.layers.dropout import keep_mask

LARGE_NEGATIVE = -1e9
BLOCK = 128
"""Queries of a block at most: the weights of one stay in a processor's cache."""
# In a shorter band the blocks are still so long, for the sake of the matrix products.
_SHORTEST_BAND_BLOCK = 32


def whole_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    seen: jax.Array,
    *,
    dropout: float = 0.0,
    rng: jax.Array | None = None,
) -> jax.Array:
    """Attention that holds all weights at once.

    Args:
        query: `[batch, heads, queries, size]`.
        key: `[batch, heads, keys, size]`.
        value: `[batch, heads, keys, size]`.
        seen: Bool, broadcast to `[batch, heads, queries, keys]`: which keys a query may see.
        dropout: Rate on the weights.
        rng: Random key for the dropout; None without.

    Returns:
        `[batch, heads, queries, size]` in the type of the value.
    """
    logits = jnp.where(seen, _logits(_scaled(query), key), LARGE_NEGATIVE)
    weights = jax.nn.softmax(logits, axis=-1)
    if rng is not None:
        weights = weights * _kept(rng, weights.shape, dropout)
    return jnp.einsum("bhqk,bhkd->bhqd", weights.astype(value.dtype), value)


def blocked_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array,
    *,
    context: int | None = None,
    dropout: float = 0.0,
    rng: jax.Array | None = None,
    block: int = BLOCK,
) -> jax.Array:
    """Self-attention that holds the weights of one block of queries at a time.

    Args:
        query: `[batch, heads, frames, size]`.
        key: `[batch, heads, frames, size]`.
        value: `[batch, heads, frames, size]`.
        mask: `[batch, frames]` bool, True = valid.
        context: How many frames to each side a frame sees; None for all.
        dropout: Rate on the weights.
        rng: Random key for the dropout; None without.
        block: Queries of a block at most.

    Returns:
        `[batch, heads, frames, size]`.
    """
    frames = query.shape[2]
    blocks = -(-frames // block)
    rows = -(-frames // blocks)
    blocks = -(-frames // rows)
    padded = ((0, 0), (0, 0), (0, blocks * rows - frames), (0, 0))
    query = jnp.pad(_scaled(query), padded)
    query = query.reshape(*query.shape[:2], blocks, rows, -1).transpose(2, 0, 1, 3, 4)
    y = _in_blocks(query, key, value, mask, rng, context, dropout)
    y = y.transpose(1, 2, 0, 3, 4).reshape(*y.shape[1:3], blocks * rows, -1)
    return y[:, :, :frames]


def local_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array,
    *,
    context: int,
    dropout: float = 0.0,
    rng: jax.Array | None = None,
) -> jax.Array:
    """Self-attention of every frame to its neighbours.

    Frames are cut into blocks of at least ``context``; the queries of a block see its keys and
    ``context`` more on each side.

    Args:
        query: `[batch, heads, frames, size]`.
        key: `[batch, heads, frames, size]`.
        value: `[batch, heads, frames, size]`.
        mask: `[batch, frames]` bool, True = valid.
        context: How many frames to each side a frame sees.
        dropout: Rate on the weights.
        rng: Random key for the dropout; None without.

    Returns:
        `[batch, heads, frames, size]`.
    """
    batch, heads, frames, size = query.shape
    rows = band_block(context)
    blocks = -(-frames // rows)
    more = blocks * rows - frames

    def cut(x: jax.Array) -> jax.Array:
        """`[batch, ..., frames, size]` to `[batch, blocks, ..., rows, size]`."""
        x = jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, more), (0, 0)])
        return jnp.moveaxis(x.reshape(*x.shape[:-2], blocks, rows, x.shape[-1]), -3, 1)

    def with_neighbours(x: jax.Array) -> jax.Array:
        """The rows of each block, with ``context`` rows before and behind."""
        if not context:
            return x
        edge = jnp.zeros_like(x[:, :1, ..., :context, :])
        before = jnp.concatenate([edge, x[:, :-1, ..., rows - context :, :]], axis=1)
        behind = jnp.concatenate([x[:, 1:, ..., :context, :], edge], axis=1)
        return jnp.concatenate([before, x, behind], axis=-2)

    valid = with_neighbours(cut(mask[..., None]))[..., 0]
    distance = np.arange(rows + 2 * context) - context - np.arange(rows)[:, None]
    seen = valid[:, :, None, None, :] & jnp.asarray(np.abs(distance) <= context)
    merged = [
        x.reshape(batch * blocks, *x.shape[2:])
        for x in (cut(query), with_neighbours(cut(key)), with_neighbours(cut(value)), seen)
    ]
    y = whole_attention(*merged, dropout=dropout, rng=rng)
    y = jnp.moveaxis(y.reshape(batch, blocks, heads, rows, size), 1, 2)
    return y.reshape(batch, heads, blocks * rows, size)[:, :, :frames]


def band_block(context: int) -> int:
    """Queries of a block of `local_attention`."""
    return max(context, _SHORTEST_BAND_BLOCK)


def band_pays(frames: int, context: int) -> bool:
    """Whether a band has at most half of the weights of the whole square."""
    return 2 * (band_block(context) + 2 * context) <= frames


def _scaled(query: jax.Array) -> jax.Array:
    return query * query.shape[-1] ** -0.5


def _logits(scaled_query: jax.Array, key: jax.Array) -> jax.Array:
    return jnp.einsum(
        "bhqd,bhkd->bhqk",
        scaled_query,
        key,
        preferred_element_type=jnp.promote_types(key.dtype, jnp.float32),
    )


def _kept(rng: jax.Array, shape: tuple[int, ...], dropout: float) -> jax.Array:
    """What the weights are multiplied with: 0, or the inverse of the share that is kept."""
    kept = keep_mask(rng, 1.0 - dropout, shape)
    return jnp.where(kept, 1.0 / max(1.0 - dropout, 1e-6), 0.0)


def _seen_by(number: jax.Array, rows: int, mask: jax.Array, context: int | None) -> jax.Array:
    """Keys that the queries of a block may see: broadcast to `[batch, heads, rows, keys]`."""
    seen = mask[:, None, None, :]
    if context is not None:
        queries = number * rows + jnp.arange(rows)
        seen = seen & (jnp.abs(queries[:, None] - jnp.arange(mask.shape[1])) <= context)
    return seen


def _forward(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array,
    rng: jax.Array | None,
    context: int | None,
    dropout: float,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The output of every block, with the maximum and the sum of its rows in float32."""
    blocks, _, _, rows, _ = query.shape

    def block(
        _: None, inputs: tuple[jax.Array, jax.Array]
    ) -> tuple[None, tuple[jax.Array, jax.Array, jax.Array]]:
        number, some = inputs
        seen = _seen_by(number, rows, mask, context)
        logits = jnp.where(seen, _logits(some, key), LARGE_NEGATIVE)
        largest = jnp.max(logits, axis=-1, keepdims=True)
        weights = jnp.exp(logits - largest)
        total = jnp.sum(weights, axis=-1, keepdims=True)
        if rng is not None:
            weights *= _kept(jax.random.fold_in(rng, number), weights.shape, dropout)
        mixed = jnp.einsum("bhqk,bhkd->bhqd", weights.astype(value.dtype), value)
        # Divided here and not above: the outputs are fewer than the weights.
        return None, ((mixed / total).astype(value.dtype), largest, total)

    return jax.lax.scan(block, None, (jnp.arange(blocks), query))[1]


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _in_blocks(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array,
    rng: jax.Array | None,
    context: int | None,
    dropout: float,
) -> jax.Array:
    """Scaled queries `[blocks, batch, heads, rows, size]` to outputs of that shape."""
    return _forward(query, key, value, mask, rng, context, dropout)[0]


def _keep(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array,
    rng: jax.Array | None,
    context: int | None,
    dropout: float,
) -> tuple[jax.Array, tuple[jax.Array | None, ...]]:
    output, largest, total = _forward(query, key, value, mask, rng, context, dropout)
    return output, (query, key, value, mask, rng, output, largest, total)


def _gradient(
    context: int | None,
    dropout: float,
    kept: tuple[jax.Array, ...],
    cotangent: jax.Array,
) -> tuple[jax.Array | None, ...]:
    query, key, value, mask, rng, output, largest, total = kept
    blocks, _, _, rows, _ = query.shape
    wide = total.dtype

    def block(
        sums: tuple[jax.Array, jax.Array], inputs: tuple[jax.Array, ...]
    ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        number, some, y, largest, total, dy = inputs
        seen = _seen_by(number, rows, mask, context)
        with jax.named_scope("recomputed"):
            logits = jnp.where(seen, _logits(some, key), LARGE_NEGATIVE)
        weights = jnp.exp(logits - largest) / total
        dweights = jnp.einsum("bhqd,bhkd->bhqk", dy, value, preferred_element_type=wide)
        used = weights
        if rng is not None:
            factor = _kept(jax.random.fold_in(rng, number), weights.shape, dropout)
            used, dweights = weights * factor, dweights * factor
        # What a row's weights have in common falls out of the softmax: sum(weights * dweights).
        common = jnp.sum(dy.astype(wide) * y.astype(wide), axis=-1, keepdims=True)
        dlogits = jnp.where(seen, weights * (dweights - common), 0.0).astype(key.dtype)
        dvalue = jnp.einsum(
            "bhqk,bhqd->bhkd", used.astype(dy.dtype), dy, preferred_element_type=wide
        )
        dkey = jnp.einsum("bhqk,bhqd->bhkd", dlogits, some, preferred_element_type=wide)
        dsome = jnp.einsum("bhqk,bhkd->bhqd", dlogits, key)
        return (sums[0] + dkey, sums[1] + dvalue), dsome

    zeros = (jnp.zeros(key.shape, wide), jnp.zeros(value.shape, wide))
    inputs = (jnp.arange(blocks), query, output, largest, total, cotangent)
    (dkey, dvalue), dquery = jax.lax.scan(block, zeros, inputs)
    return dquery, dkey.astype(key.dtype), dvalue.astype(value.dtype), None, None


_in_blocks.defvjp(_keep, _gradient)
