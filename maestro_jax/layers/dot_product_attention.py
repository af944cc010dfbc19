"""Softmax attention over padded sequences: whole, in blocks of queries, along a band, by kernels.

All of them compute `softmax(query key' / sqrt(size)) value` over the keys that a query may see,
with the softmax in float32, and take and give `[batch, heads, frames, size]`. A query that may see
no key gets the average of all values, and no gradient through its weights.

`blocked_attention` never holds the weights of more than a block of queries: its gradient computes
them again from the maximum and the sum of each row, as in FlashAttention (Dao et al. 2022, arXiv
2205.14135, section 3.1). `local_attention` takes time and memory in proportion to frames times
context, as a band of blocks (Beltagy et al. 2020, arXiv 2004.05150, section 3.1).

`cudnn_attention` and `pallas_attention` call flash attention written by others, for GPUs and TPUs,
which has neither dropout on the weights nor a band; they take and give
`[batch, frames, heads, size]`.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from maestro_jax.layers.dropout import keep_mask

# Masked logits are finite: a row without any visible key then has equal weights, where -inf would
# make NaN of its softmax and of every gradient that meets it.
LARGE_NEGATIVE = -1e9
BLOCK = 128
"""Queries of a block at most: the weights of one stay in a processor's cache."""
# In a shorter band the blocks are still so long, for the sake of the matrix products.
_SHORTEST_BAND_BLOCK = 32
_PALLAS_LANES = 128
_PALLAS_BLOCKS = (512, 384, 256, 128)
_LARGEST_CUDNN_HEAD = 128


def whole_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    visible: jax.Array,
    *,
    dropout: float = 0.0,
    rng: jax.Array | None = None,
) -> jax.Array:
    """Computes attention with all weights at once.

    Args:
        query: `[batch, heads, queries, size]`.
        key: `[batch, heads, keys, size]`.
        value: `[batch, heads, keys, size]`.
        visible: Bool, broadcast to `[batch, heads, queries, keys]`: which keys a query may see.
        dropout: Rate on the weights.
        rng: Random key for the dropout; None without.

    Returns:
        `[batch, heads, queries, size]` in the type of the value.
    """
    # [batch, heads, queries, keys], float32 whatever the dtype of the operands.
    logits = jnp.where(visible, _logits(_scaled(query), key), LARGE_NEGATIVE)
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
    """Computes self-attention with the weights of one block of queries at a time.

    Args:
        query: `[batch, heads, frames, size]`.
        key: `[batch, heads, frames, size]`.
        value: `[batch, heads, frames, size]`.
        mask: `[batch, frames]` bool, True = valid.
        context: Number of frames to each side that a frame sees; None for all.
        dropout: Rate on the weights.
        rng: Random key for the dropout; None without.
        block: Queries of a block at most.

    Returns:
        `[batch, heads, frames, size]`.
    """
    frames = query.shape[2]
    # Blocks of nearly equal length, so that little is padded.
    blocks = -(-frames // block)
    rows = -(-frames // blocks)
    blocks = -(-frames // rows)
    padded = ((0, 0), (0, 0), (0, blocks * rows - frames), (0, 0))
    # Rows beyond the last frame are computed and cut off; they get no cotangent.
    query = jnp.pad(_scaled(query), padded)
    # [batch, heads, blocks * rows, size] -> [blocks, batch, heads, rows, size]
    query = query.reshape(*query.shape[:2], blocks, rows, -1).transpose(2, 0, 1, 3, 4)
    y = _blocked(query, key, value, mask, rng, context, dropout)
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
    """Computes self-attention of every frame to its neighbours.

    Frames are cut into blocks of at least ``context``; the queries of a block see its keys and
    ``context`` more on each side.

    Args:
        query: `[batch, heads, frames, size]`.
        key: `[batch, heads, frames, size]`.
        value: `[batch, heads, frames, size]`.
        mask: `[batch, frames]` bool, True = valid.
        context: Number of frames to each side that a frame sees.
        dropout: Rate on the weights.
        rng: Random key for the dropout; None without.

    Returns:
        `[batch, heads, frames, size]`.
    """
    batch, heads, frames, size = query.shape
    rows = band_block(context)
    blocks = -(-frames // rows)
    padding = blocks * rows - frames

    def cut(x: jax.Array) -> jax.Array:
        """Cuts `[batch, ..., frames, size]` to `[batch, blocks, ..., rows, size]`."""
        x = jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, padding), (0, 0)])
        return jnp.moveaxis(x.reshape(*x.shape[:-2], blocks, rows, x.shape[-1]), -3, 1)

    def with_neighbours(x: jax.Array) -> jax.Array:
        """Adds ``context`` rows before and after to the rows of each block."""
        if not context:
            return x
        # Blocks are at least `context` long, so that all neighbours lie in the blocks beside it.
        # The edges are zeros: for the mask, which goes the same way, False.
        edge = jnp.zeros_like(x[:, :1, ..., :context, :])
        before = jnp.concatenate([edge, x[:, :-1, ..., rows - context :, :]], axis=1)
        behind = jnp.concatenate([x[:, 1:, ..., :context, :], edge], axis=1)
        return jnp.concatenate([before, x, behind], axis=-2)

    valid = with_neighbours(cut(mask[..., None]))[..., 0]  # [batch, blocks, rows + 2 context]
    # Distance of a block's keys from its queries, [rows, rows + 2 context].
    distance = np.arange(rows + 2 * context) - context - np.arange(rows)[:, None]
    visible = valid[:, :, None, None, :] & jnp.asarray(np.abs(distance) <= context)
    # Blocks become rows of the batch.
    merged = [
        x.reshape(batch * blocks, *x.shape[2:])
        for x in (cut(query), with_neighbours(cut(key)), with_neighbours(cut(value)), visible)
    ]
    y = whole_attention(*merged, dropout=dropout, rng=rng)
    y = jnp.moveaxis(y.reshape(batch, blocks, heads, rows, size), 1, 2)
    return y.reshape(batch, heads, blocks * rows, size)[:, :, :frames]


def band_block(context: int) -> int:
    """Returns the number of queries in a block of `local_attention`."""
    return max(context, _SHORTEST_BAND_BLOCK)


def local_is_cheaper(frames: int, context: int) -> bool:
    """Returns whether a band has at most half of the weights of the whole square."""
    return 2 * (band_block(context) + 2 * context) <= frames


def cudnn_supports(dtype: Any, size: int) -> bool:
    """Returns whether cuDNN's kernel supports this dtype and head size on all its GPUs."""
    half = jnp.dtype(dtype) in (jnp.bfloat16, jnp.float16)
    return half and size % 8 == 0 and size <= _LARGEST_CUDNN_HEAD


def cudnn_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array
) -> jax.Array:
    """Calls cuDNN's flash attention.

    Args:
        query: `[batch, frames, heads, size]`, bfloat16 or float16.
        key: `[batch, frames, heads, size]`.
        value: `[batch, frames, heads, size]`.
        mask: `[batch, frames]` bool, True = valid; the valid frames come first.

    Returns:
        `[batch, frames, heads, size]`.
    """
    # By lengths and not by a mask, of which cuDNN would make a whole square. An absent example
    # keeps one key: a softmax over none is not a number.
    lengths = jnp.maximum(jnp.sum(mask, axis=1, dtype=jnp.int32), 1)
    return jax.nn.dot_product_attention(
        query, key, value, key_value_seq_lengths=lengths, implementation="cudnn"
    )


def pallas_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array
) -> jax.Array:
    """Calls the flash attention for TPUs that comes with JAX, on each device's rows and heads.

    Args:
        query: `[batch, frames, heads, size]`.
        key: `[batch, frames, heads, size]`.
        value: `[batch, frames, heads, size]`.
        mask: `[batch, frames]` bool, True = valid. Padded frames attend to one another.

    Returns:
        `[batch, frames, heads, size]`.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or not nn.get_logical_axis_rules():
        return _pallas_on_one_device(query, key, value, mask)
    rows, heads = nn.logical_to_mesh_axes(("batch", "act_heads")) or (None, None)
    whole = PartitionSpec(rows, None, heads, None)
    # A kernel is opaque to the partitioner, which would bring all rows to every device.
    sharded = jax.shard_map(
        _pallas_on_one_device,
        in_specs=(whole, whole, whole, PartitionSpec(rows, None)),
        out_specs=whole,
        check_vma=False,
    )
    return sharded(query, key, value, mask)


def _pallas_on_one_device(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array
) -> jax.Array:
    # Here, because the import takes a second that only users of the kernel should wait for.
    from jax.experimental.pallas.ops.tpu import flash_attention as kernel

    frames, size = query.shape[1], query.shape[-1]
    # The kernel takes whole tiles of 128 positions, and blocks that divide the length.
    padding = -frames % _PALLAS_LANES
    block = next(block for block in _PALLAS_BLOCKS if (frames + padding) % block == 0)
    query, key, value = (
        jnp.pad(x, ((0, 0), (0, padding), (0, 0), (0, 0))).transpose(0, 2, 1, 3)
        for x in (query, key, value)
    )
    # Segment 1 is data and segment 0 padding; the kernel lets equal segments see each other.
    segments = jnp.pad(mask, ((0, 0), (0, padding))).astype(jnp.int32)
    sizes = kernel.BlockSizes(
        block_q=block,
        block_k_major=block,
        block_k=block,
        block_b=1,
        block_q_major_dkv=block,
        block_k_major_dkv=block,
        block_k_dkv=block,
        block_q_dkv=block,
        block_k_major_dq=block,
        block_k_dq=block,
        block_q_dq=block,
    )
    y = kernel.flash_attention(
        query,
        key,
        value,
        segment_ids=kernel.SegmentIds(segments, segments),
        sm_scale=size**-0.5,
        block_sizes=sizes,
    )
    return y.transpose(0, 2, 1, 3)[:, :frames]


def _scaled(query: jax.Array) -> jax.Array:
    # On the query, which has fewer numbers than the logits of a long sequence.
    return query * query.shape[-1] ** -0.5


def _logits(scaled_query: jax.Array, key: jax.Array) -> jax.Array:
    return jnp.einsum(
        "bhqd,bhkd->bhqk",
        scaled_query,
        key,
        preferred_element_type=jnp.promote_types(key.dtype, jnp.float32),
    )


def _kept(rng: jax.Array, shape: tuple[int, ...], dropout: float) -> jax.Array:
    """Draws the factors of the weights: 0, or the inverse of the fraction that is kept."""
    kept = keep_mask(rng, 1.0 - dropout, shape)
    return jnp.where(kept, 1.0 / max(1.0 - dropout, 1e-6), 0.0)


def _visible_keys(number: jax.Array, rows: int, mask: jax.Array, context: int | None) -> jax.Array:
    """Returns the keys that the queries of a block see, `[batch or 1, 1, rows or 1, keys]`."""
    visible = mask[:, None, None, :]
    if context is not None:
        # Positions in the whole sequence of the rows of this block.
        queries = number * rows + jnp.arange(rows)
        visible = visible & (jnp.abs(queries[:, None] - jnp.arange(mask.shape[1])) <= context)
    return visible


def _forward(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array,
    rng: jax.Array | None,
    context: int | None,
    dropout: float,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the output of every block, and the maximum and the sum of its rows in float32."""
    blocks, _, _, rows, _ = query.shape

    def block(
        _: None, inputs: tuple[jax.Array, jax.Array]
    ) -> tuple[None, tuple[jax.Array, jax.Array, jax.Array]]:
        number, query_block = inputs
        visible = _visible_keys(number, rows, mask, context)
        # [batch, heads, rows, keys]
        logits = jnp.where(visible, _logits(query_block, key), LARGE_NEGATIVE)
        # The maximum is subtracted so that the exponential cannot overflow.
        largest = jnp.max(logits, axis=-1, keepdims=True)  # [batch, heads, rows, 1]
        weights = jnp.exp(logits - largest)
        total = jnp.sum(weights, axis=-1, keepdims=True)
        if rng is not None:
            weights *= _kept(jax.random.fold_in(rng, number), weights.shape, dropout)
        mixed = jnp.einsum("bhqk,bhkd->bhqd", weights.astype(value.dtype), value)
        # Normalised here and not above: there are fewer outputs than weights.
        return None, ((mixed / total).astype(value.dtype), largest, total)

    # Scanned and not mapped over with vmap: the weights of one block exist at a time.
    return jax.lax.scan(block, None, (jnp.arange(blocks), query))[1]


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _blocked(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array,
    rng: jax.Array | None,
    context: int | None,
    dropout: float,
) -> jax.Array:
    """Maps scaled queries `[blocks, batch, heads, rows, size]` to outputs of that shape."""
    return _forward(query, key, value, mask, rng, context, dropout)[0]


def _forward_with_residuals(
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


def _backward(
    context: int | None,
    dropout: float,
    residuals: tuple[jax.Array, ...],
    cotangent: jax.Array,
) -> tuple[jax.Array | None, ...]:
    query, key, value, mask, rng, output, largest, total = residuals
    blocks, _, _, rows, _ = query.shape
    sum_dtype = total.dtype

    def block(
        sums: tuple[jax.Array, jax.Array], inputs: tuple[jax.Array, ...]
    ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        number, query_block, output_block, largest, total, d_output = inputs
        visible = _visible_keys(number, rows, mask, context)
        with jax.named_scope("recomputed"):
            logits = jnp.where(visible, _logits(query_block, key), LARGE_NEGATIVE)
        # The softmax of the forward pass again, from the maximum and the sum that it kept.
        weights = jnp.exp(logits - largest) / total
        d_weights = jnp.einsum("bhqd,bhkd->bhqk", d_output, value, preferred_element_type=sum_dtype)
        dropped = weights
        if rng is not None:
            # The same key as in the forward pass, and so the same mask, which was not kept.
            factor = _kept(jax.random.fold_in(rng, number), weights.shape, dropout)
            dropped, d_weights = weights * factor, d_weights * factor
        # The softmax's gradient is weights * (d_weights - sum(weights * d_weights)); the sum over
        # keys equals the product of output and cotangent, which needs no weights.
        common = jnp.sum(
            d_output.astype(sum_dtype) * output_block.astype(sum_dtype), axis=-1, keepdims=True
        )
        # Zero where LARGE_NEGATIVE stood, a constant. A query without keys has equal weights, whose
        # gradient ends here.
        d_logits = jnp.where(visible, weights * (d_weights - common), 0.0).astype(key.dtype)
        d_value = jnp.einsum(
            "bhqk,bhqd->bhkd",
            dropped.astype(d_output.dtype),
            d_output,
            preferred_element_type=sum_dtype,
        )
        d_key = jnp.einsum(
            "bhqk,bhqd->bhkd", d_logits, query_block, preferred_element_type=sum_dtype
        )
        d_query = jnp.einsum("bhqk,bhkd->bhqd", d_logits, key)
        return (sums[0] + d_key, sums[1] + d_value), d_query

    # Every block adds to the gradient of all keys and values: a carry in float32. The gradient of
    # its queries is its own: an output.
    zeros = (jnp.zeros(key.shape, sum_dtype), jnp.zeros(value.shape, sum_dtype))
    inputs = (jnp.arange(blocks), query, output, largest, total, cotangent)
    (d_key, d_value), d_queries = jax.lax.scan(block, zeros, inputs)
    return d_queries, d_key.astype(key.dtype), d_value.astype(value.dtype), None, None


_blocked.defvjp(_forward_with_residuals, _backward)
