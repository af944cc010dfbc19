"""The joint network and the arcs it gives, without the lattice of logits.

The joint network puts a distribution over the vocabulary on every node of the lattice::

    hidden[t, u] = tanh(frames[t] + predictions[u])
    logits[t, u] = hidden[t, u] @ kernel + bias

Two numbers of each distribution are needed, the log-probabilities of the blank and of the next
label, but an array of all logits, `[batch, frames, labels + 1, vocab]`, is the largest of a
training step by far (2.5 GiB a copy at 4 utterances, 400 frames, 100 labels and 4096 words). Here
it exists for a chunk of frames at a time. The backward pass makes each chunk's logits once more and
writes their gradient in one go (the "function merging" of Li et al. 2019, arXiv 1909.12415, section
3): in all 4/3 of the multiplications, and memory in proportion to the chunk.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from maestro_jax.losses.transducer_arcs import arcs, arcs_gradient, check_blank

Constrain = Callable[..., jax.Array]
"""`(array, *logical axis names) -> array`: asks a partitioner for a layout."""

_MIB = 2**20
MOST_CHUNKS = 64
SMALLEST_CHUNK_BYTES = 4 * _MIB
LARGEST_CHUNK_BYTES = 128 * _MIB


def chunk_rule(batch: int, frames: int, width: int, vocab: int) -> int:
    """How many frames of logits to hold at once.

    A 64th of the lattice, so that a long loop stays short and memory falls by about that factor;
    more where that would be less than 4 MiB of float32 logits, too little work for a step of a
    loop; less where it would be more than 128 MiB. Chunks are then made equally long.

    Args:
        batch: Examples on one device.
        frames: Frames of the lattice.
        width: Labels + 1.
        vocab: Logits of a node that one device holds.

    Returns:
        Frames a chunk, between 1 and `frames`.
    """
    frame_bytes = 4 * batch * width * vocab
    wanted = max(-(-frames // MOST_CHUNKS), SMALLEST_CHUNK_BYTES // frame_bytes)
    chunk = max(1, min(wanted, LARGEST_CHUNK_BYTES // frame_bytes, frames))
    return -(-frames // -(-frames // chunk))


def unconstrained(x: jax.Array, *axes: str | None) -> jax.Array:
    """The array as it is, for code that no partitioner sees."""
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
    """Log-probabilities of the blank and of the next label at every node, from the joint's inputs.

    Matrices are multiplied in the type of `frames` and summed in float32; the softmax is float32.

    Args:
        frames: Encoder output, projected, `[batch, frames, joint]`.
        predictions: Prediction network output after 0, 1, ... labels, projected,
            `[batch, labels + 1, joint]`.
        kernel: `[joint, vocab]`.
        bias: `[vocab]`.
        labels: Token ids, `[batch, labels]`.
        blank_id: The token id of the blank.
        hat: The hybrid autoregressive factorisation instead of one softmax.
        chunk_frames: Frames whose logits are held at once; None takes `chunk_rule` for the shapes
            as they are. Under a partitioner these are those of all devices together: a caller that
            knows the mesh gives the number for one device.
        constrain: Called on the chunk's arrays with the logical axis names `batch`, `frames` and
            `act_vocab`; left alone, a partitioner may replicate the batch.

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
    for name, (shape, wanted) in expected.items():
        if shape != wanted:
            raise ValueError(f"{name} beside frames {frames.shape} must be {wanted}, not {shape}")
    check_blank(blank_id, kernel.shape[1])
    if chunk_frames is None:
        chunk_frames = chunk_rule(batch, length, predictions.shape[1], kernel.shape[1])
    if chunk_frames < 1:
        raise ValueError(f"chunk_frames must be at least 1, not {chunk_frames}")
    chunk = min(chunk_frames, length)
    # Padding outside the differentiated function: its own gradient then needs no care.
    padded = jnp.pad(frames, ((0, 0), (0, -length % chunk), (0, 0)))
    log_blank, log_label = _joint_lattices(
        padded, predictions, kernel, bias, labels, (blank_id, hat, chunk, constrain)
    )
    return log_blank[:, :length], log_label[:, :length]


Setting = tuple[int, bool, int, Constrain]
"""blank_id, hat, frames a chunk, constrain."""


def _hidden(chunk: jax.Array, predictions: jax.Array) -> jax.Array:
    """`[batch, chunk, labels + 1, joint]`."""
    return jnp.tanh(chunk[:, :, None, :] + predictions[:, None, :, :]).astype(chunk.dtype)


def _logits(
    hidden: jax.Array, weights: jax.Array, bias: jax.Array, constrain: Constrain
) -> jax.Array:
    """`[batch, chunk, labels + 1, vocab]` float32, from a product of two matrices of one type.

    A product with four axes is slow on CPU.
    """
    dtype = jnp.promote_types(hidden.dtype, jnp.float32)
    rows = hidden.reshape(-1, hidden.shape[-1])
    logits = jnp.matmul(rows, weights, preferred_element_type=dtype)
    logits = logits.reshape(*hidden.shape[:-1], -1) + bias.astype(dtype)
    return constrain(logits, "batch", "frames", None, "act_vocab")


def _to_chunks(x: jax.Array, chunk: int) -> jax.Array:
    """`[batch, frames, ...]` to `[chunks, batch, chunk, ...]`."""
    return x.reshape(x.shape[0], -1, chunk, *x.shape[2:]).swapaxes(0, 1)


def _from_chunks(x: jax.Array) -> jax.Array:
    """`[chunks, batch, chunk, ...]` to `[batch, frames, ...]`."""
    x = x.swapaxes(0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])


def _joint_and_residuals(
    frames: jax.Array,
    predictions: jax.Array,
    kernel: jax.Array,
    bias: jax.Array,
    labels: jax.Array,
    setting: Setting,
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, ...]]:
    blank_id, hat, size, constrain = setting
    weights = kernel.astype(frames.dtype)

    def one(chunk: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        hidden = constrain(_hidden(chunk, predictions), "batch", "frames", None, None)
        return arcs(_logits(hidden, weights, bias, constrain), labels, blank_id, hat)

    found = jax.lax.map(one, _to_chunks(frames, size))
    log_blank, log_label, normaliser = (_from_chunks(x) for x in found)
    return (log_blank, log_label), (frames, predictions, kernel, bias, labels, normaliser)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _joint_lattices(
    frames: jax.Array,
    predictions: jax.Array,
    kernel: jax.Array,
    bias: jax.Array,
    labels: jax.Array,
    setting: Setting,
) -> tuple[jax.Array, jax.Array]:
    return _joint_and_residuals(frames, predictions, kernel, bias, labels, setting)[0]


def _joint_backward(
    setting: Setting, residuals: tuple[jax.Array, ...], cotangents: tuple[jax.Array, jax.Array]
) -> tuple[Any, ...]:
    frames, predictions, kernel, bias, labels, normaliser = residuals
    blank_id, hat, size, constrain = setting
    dtype = normaliser.dtype
    weights = kernel.astype(frames.dtype)

    def one(
        sums: tuple[jax.Array, ...], inputs: tuple[jax.Array, ...]
    ) -> tuple[tuple[jax.Array, ...], jax.Array]:
        of_predictions, of_kernel, of_bias = sums
        chunk, chunk_normaliser, blank, label = inputs
        # What no path passes may hold anything, and 0 * NaN would reach the sums.
        passed = (blank != 0) | (jnp.pad(label, ((0, 0), (0, 0), (0, 1))) != 0)
        # The name by which a count of FLOPs knows that these are computed a second time.
        with jax.named_scope("recomputed"):
            hidden = jnp.where(passed[..., None], _hidden(chunk, predictions), 0.0)
            hidden = constrain(hidden, "batch", "frames", None, None)
            logits = _logits(hidden, weights, bias, constrain)
        of_logits = constrain(
            arcs_gradient(logits, labels, chunk_normaliser, blank, label, blank_id, hat),
            *("batch", "frames", None, "act_vocab"),
        )
        rows = of_logits.astype(frames.dtype).reshape(-1, of_logits.shape[-1])
        of_kernel += jnp.matmul(
            hidden.reshape(-1, hidden.shape[-1]).T, rows, preferred_element_type=dtype
        )
        of_bias += jnp.sum(of_logits, axis=(0, 1, 2))
        of_hidden = jnp.matmul(rows, weights.T, preferred_element_type=dtype).reshape(hidden.shape)
        of_hidden = constrain(of_hidden, "batch", "frames", None, None)
        of_sum = of_hidden * (1.0 - jnp.square(hidden.astype(dtype)))
        of_predictions += jnp.sum(of_sum, axis=1)
        return (of_predictions, of_kernel, of_bias), jnp.sum(of_sum, axis=2)

    start = tuple(jnp.zeros(x.shape, dtype) for x in (predictions, kernel, bias))
    inputs = tuple(_to_chunks(x, size) for x in (frames, normaliser, *cotangents))
    (of_predictions, of_kernel, of_bias), of_frames = jax.lax.scan(one, start, inputs)
    return (
        _from_chunks(of_frames).astype(frames.dtype),
        of_predictions.astype(predictions.dtype),
        of_kernel.astype(kernel.dtype),
        of_bias.astype(bias.dtype),
        None,
    )


_joint_lattices.defvjp(_joint_and_residuals, _joint_backward)
