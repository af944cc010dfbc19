"""Attention by kernels that others wrote: cuDNN's on GPUs, JAX's Pallas kernel on TPUs.

Both are flash attention; neither has dropout on the weights or a band. They take and give
`[batch, frames, heads, size]`.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

_LANES = 128
_BLOCKS = (512, 384, 256, 128)
_LARGEST_CUDNN_HEAD = 128


def cudnn_takes(dtype: Any, size: int) -> bool:
    """Whether cuDNN's kernel computes in this type with heads of this size on all its GPUs."""
    half = jnp.dtype(dtype) in (jnp.bfloat16, jnp.float16)
    return half and size % 8 == 0 and size <= _LARGEST_CUDNN_HEAD


def cudnn_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array
) -> jax.Array:
    """CuDNN's flash attention.

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
    """The flash attention for TPUs that comes with JAX, on each device's rows and heads.

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
        return _on_one_device(query, key, value, mask)
    rows, heads = nn.logical_to_mesh_axes(("batch", "act_heads")) or (None, None)
    whole = PartitionSpec(rows, None, heads, None)
    # A kernel is opaque to the partitioner, which would bring all rows to every device.
    sharded = jax.shard_map(
        _on_one_device,
        in_specs=(whole, whole, whole, PartitionSpec(rows, None)),
        out_specs=whole,
        check_vma=False,
    )
    return sharded(query, key, value, mask)


def _on_one_device(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array
) -> jax.Array:
    # Here, because the import takes a second that only users of the kernel should wait for.
    from jax.experimental.pallas.ops.tpu import flash_attention as kernel

    frames, size = query.shape[1], query.shape[-1]
    more = -frames % _LANES
    block = next(block for block in _BLOCKS if (frames + more) % block == 0)
    query, key, value = (
        jnp.pad(x, ((0, 0), (0, more), (0, 0), (0, 0))).transpose(0, 2, 1, 3)
        for x in (query, key, value)
    )
    segments = jnp.pad(mask, ((0, 0), (0, more))).astype(jnp.int32)
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
