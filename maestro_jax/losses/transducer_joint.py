"""Computes the joint network's arcs chunk by chunk, without the logits of the whole lattice.

The joint network gives a distribution over the vocabulary at every node of the lattice::

    hidden[t, u] = tanh(frames[t] + predictions[u])
    logits[t, u] = hidden[t, u] @ kernel + bias

Two numbers of each distribution are needed, the log-probabilities of the blank and of the next
label, but an array of all logits, `[batch, frames, labels + 1, vocab]`, is the largest of a
training step by far (2.5 GiB per copy at 4 utterances, 400 frames, 100 labels, 4096 tokens). Here
it exists for one chunk of frames at a time. The backward pass recomputes each chunk's logits and
computes their gradient in one pass (the "function merging" of Li et al. 2019, arXiv 1909.12415,
section 3). That takes 4/3 of the multiplications, and memory in proportion to the chunk.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from maestro_jax.losses.transducer_arcs import (
    blank_label_gradient,
    blank_label_log_probs,
    check_blank,
)

Constrain = Callable[..., jax.Array]
"""`(array, *logical axis names) -> array`: constrains the sharding of an array."""

_MIB = 2**20
MOST_CHUNKS = 64
SMALLEST_CHUNK_BYTES = 4 * _MIB
LARGEST_CHUNK_BYTES = 128 * _MIB


def chunk_rule(batch: int, frames: int, width: int, vocab: int) -> int:
    """Chooses how many frames of logits to hold at once.

    A 64th of the lattice, so that the loop stays short and memory falls by about that factor; more
    where that is less than 4 MiB of float32 logits, too little work for one turn of a loop; less
    where it is more than 128 MiB. Chunks are then made equally long.

    Args:
        batch: Examples on one device.
        frames: Frames of the lattice.
        width: Labels + 1.
        vocab: Logits per node that one device holds.

    Returns:
        Frames per chunk, between 1 and `frames`.
    """
    frame_bytes = 4 * batch * width * vocab
    # `-(-a // b)` is a / b rounded up.
    chunk = max(-(-frames // MOST_CHUNKS), SMALLEST_CHUNK_BYTES // frame_bytes)
    chunk = max(1, min(chunk, LARGEST_CHUNK_BYTES // frame_bytes, frames))
    # As many chunks as that takes, of equal length: a short last chunk would be padded with frames
    # whose logits are computed for nothing.
    chunks = -(-frames // chunk)
    return -(-frames // chunks)


def unconstrained(x: jax.Array, *axes: str | None) -> jax.Array:
    """Returns the array unchanged, for computations on one device."""
    del axes
    return x


def joint_lattices(
    frames: jax.Array,
    predictions: jax.Array,
    kernel: jax.Array,
    bias: jax.Array,
    labels: jax.Array,
    *,
    blank_id: int = 0,
    hat: bool = False,
    chunk_frames: int | None = None,
    constrain: Constrain = unconstrained,
) -> tuple[jax.Array, jax.Array]:
    """Computes both arcs of every node from the inputs of the joint network.

    Matrices are multiplied in the dtype of `frames` and accumulated in float32; the softmax is
    computed in float32.

    Args:
        frames: Encoder output, projected, `[batch, frames, joint]`.
        predictions: Prediction network output after 0, 1, ... labels, projected,
            `[batch, labels + 1, joint]`.
        kernel: Output kernel, `[joint, vocab]`.
        bias: Output bias, `[vocab]`.
        labels: Token ids, `[batch, labels]`.
        blank_id: Token id of the blank.
        hat: Whether to use the hybrid autoregressive factorisation instead of one softmax.
        chunk_frames: Frames whose logits are held at once; None takes `chunk_rule` for the global
            shapes. On a mesh, a caller gives the number that suits one device's share.
        constrain: Called on the chunk's arrays with the logical axis names `batch`, `frames` and
            `act_vocab`. Without it the partitioner may replicate the batch.

    Returns:
        `log_blank`, `[batch, frames, labels + 1]`, and `log_label`, `[batch, frames, labels]`,
        float32 (float64 for float64 inputs).

    Raises:
        ValueError: If the shapes do not belong together or the blank is not in the vocabulary.
    """
    batch, length, features = frames.shape
    expected = {
        "predictions": (predictions.shape, (batch, labels.shape[1] + 1, features)),
        "kernel": (kernel.shape[:1], (features,)),
        "bias": (bias.shape, kernel.shape[1:]),
        "labels": (labels.shape[:1], (batch,)),
    }
    for name, (shape, required) in expected.items():
        if shape != required:
            raise ValueError(f"{name} beside frames {frames.shape} must be {required}, not {shape}")
    check_blank(blank_id, kernel.shape[1])
    if chunk_frames is None:
        chunk_frames = chunk_rule(batch, length, predictions.shape[1], kernel.shape[1])
    if chunk_frames < 1:
        raise ValueError(f"chunk_frames must be at least 1, not {chunk_frames}")
    chunk = min(chunk_frames, length)
    # Frames are padded outside of the function with the custom gradient: JAX differentiates it.
    padded = jnp.pad(frames, ((0, 0), (0, -length % chunk), (0, 0)))
    log_blank, log_label = _joint_lattices(
        padded, predictions, kernel, bias, labels, (blank_id, hat, chunk, constrain)
    )
    return log_blank[:, :length], log_label[:, :length]  # the padded frames get a cotangent of 0


_Options = tuple[int, bool, int, Constrain]
"""blank_id, hat, frames per chunk, constrain."""


def _hidden(chunk: jax.Array, predictions: jax.Array) -> jax.Array:
    """Computes the hidden layer of a chunk, `[batch, chunk, labels + 1, joint]`."""
    return jnp.tanh(chunk[:, :, None, :] + predictions[:, None, :, :]).astype(chunk.dtype)


def _logits(
    hidden: jax.Array, weights: jax.Array, bias: jax.Array, constrain: Constrain
) -> jax.Array:
    """Computes `[batch, chunk, labels + 1, vocab]` in float32, from hidden units and weights."""
    dtype = jnp.promote_types(hidden.dtype, jnp.float32)
    # One product of two matrices: a product with four axes is slow on CPU.
    rows = hidden.reshape(-1, hidden.shape[-1])
    # Operands may be bfloat16; products are added up in float32, and never rounded before softmax.
    logits = jnp.matmul(rows, weights, preferred_element_type=dtype)
    logits = logits.reshape(*hidden.shape[:-1], -1) + bias.astype(dtype)
    return constrain(logits, "batch", "frames", None, "act_vocab")


def _to_chunks(x: jax.Array, chunk: int) -> jax.Array:
    """Converts `[batch, frames, ...]` to `[chunks, batch, chunk, ...]`."""
    return x.reshape(x.shape[0], -1, chunk, *x.shape[2:]).swapaxes(0, 1)


def _from_chunks(x: jax.Array) -> jax.Array:
    """Converts `[chunks, batch, chunk, ...]` to `[batch, frames, ...]`."""
    x = x.swapaxes(0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])


def _joint_and_residuals(
    frames: jax.Array,
    predictions: jax.Array,
    kernel: jax.Array,
    bias: jax.Array,
    labels: jax.Array,
    options: _Options,
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, ...]]:
    blank_id, hat, size, constrain = options
    weights = kernel.astype(frames.dtype)

    def chunk_step(chunk: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        hidden = constrain(_hidden(chunk, predictions), "batch", "frames", None, None)
        return blank_label_log_probs(
            _logits(hidden, weights, bias, constrain), labels, blank_id, hat
        )

    # One chunk after the other, each [batch, chunk, labels + 1, vocab] while it lasts. Of each node
    # the backward pass keeps the normaliser alone.
    chunks = jax.lax.map(chunk_step, _to_chunks(frames, size))
    log_blank, log_label, normaliser = (_from_chunks(x) for x in chunks)
    return (log_blank, log_label), (frames, predictions, kernel, bias, labels, normaliser)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _joint_lattices(
    frames: jax.Array,
    predictions: jax.Array,
    kernel: jax.Array,
    bias: jax.Array,
    labels: jax.Array,
    options: _Options,
) -> tuple[jax.Array, jax.Array]:
    return _joint_and_residuals(frames, predictions, kernel, bias, labels, options)[0]


def _joint_backward(
    options: _Options, residuals: tuple[jax.Array, ...], cotangents: tuple[jax.Array, jax.Array]
) -> tuple[Any, ...]:
    frames, predictions, kernel, bias, labels, normaliser = residuals
    blank_id, hat, size, constrain = options
    dtype = normaliser.dtype
    weights = kernel.astype(frames.dtype)

    def chunk_step(
        sums: tuple[jax.Array, ...], inputs: tuple[jax.Array, ...]
    ) -> tuple[tuple[jax.Array, ...], jax.Array]:
        d_predictions, d_kernel, d_bias = sums
        chunk, chunk_normaliser, blank, label = inputs
        # Nodes that no path passes may hold anything, and 0 * NaN would reach the sums.
        passed = (blank != 0) | (jnp.pad(label, ((0, 0), (0, 0), (0, 1))) != 0)
        # The FLOP counter recognises recomputation by this name.
        with jax.named_scope("recomputed"):
            hidden = jnp.where(passed[..., None], _hidden(chunk, predictions), 0.0)
            hidden = constrain(hidden, "batch", "frames", None, None)
            logits = _logits(hidden, weights, bias, constrain)
        d_logits = constrain(
            blank_label_gradient(logits, labels, chunk_normaliser, blank, label, blank_id, hat),
            *("batch", "frames", None, "act_vocab"),
        )
        rows = d_logits.astype(frames.dtype).reshape(-1, d_logits.shape[-1])  # [nodes, vocab]
        # The sums over chunks are float32 whatever the dtype of the products: a running sum in
        # bfloat16 would drop what late chunks add.
        d_kernel += jnp.matmul(
            hidden.reshape(-1, hidden.shape[-1]).T, rows, preferred_element_type=dtype
        )
        d_bias += jnp.sum(d_logits, axis=(0, 1, 2))
        d_hidden = jnp.matmul(rows, weights.T, preferred_element_type=dtype).reshape(hidden.shape)
        d_hidden = constrain(d_hidden, "batch", "frames", None, None)
        # The derivative of tanh; frames and predictions are broadcast, so theirs are sums over it.
        d_sum = d_hidden * (1.0 - jnp.square(hidden.astype(dtype)))
        d_predictions += jnp.sum(d_sum, axis=1)
        return (d_predictions, d_kernel, d_bias), jnp.sum(d_sum, axis=2)

    start = tuple(jnp.zeros(x.shape, dtype) for x in (predictions, kernel, bias))
    inputs = tuple(_to_chunks(x, size) for x in (frames, normaliser, *cotangents))
    (d_predictions, d_kernel, d_bias), d_frames = jax.lax.scan(chunk_step, start, inputs)
    return (
        _from_chunks(d_frames).astype(frames.dtype),
        d_predictions.astype(predictions.dtype),
        d_kernel.astype(kernel.dtype),
        d_bias.astype(bias.dtype),
        None,
    )


_joint_lattices.defvjp(_joint_and_residuals, _joint_backward)
