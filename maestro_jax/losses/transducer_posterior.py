"""When labels are emitted, over all paths of a transducer lattice instead of the best one.

The posterior that label u is emitted in frame t is the probability of all paths through its arc,
which is the derivative of the log-likelihood with respect to the arc's log-probability:

    gamma[t, u] = d log P(labels) / d y[t, u],    sum over t of gamma[t, u] = 1

A sharp posterior is what the best path's durations can be trusted by.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from maestro_jax.losses.reduction import Weighted, masked_sum
from maestro_jax.losses.transducer import NO_PATH, transducer_loss_from_lattices


def emission_posterior(
    log_blank: jax.Array,
    log_label: jax.Array,
    frame_lengths: jax.Array,
    label_lengths: jax.Array,
    *,
    one_label_per_frame: bool = False,
) -> jax.Array:
    """The probability that a label is emitted in a frame, given the labels.

    Args:
        log_blank: Log-probability of the blank at each node, `[batch, frames, labels + 1]`.
        log_label: Log-probability of the next label at each node, `[batch, frames, labels]`.
        frame_lengths: Valid frames of each example, `[batch]`.
        label_lengths: Valid labels of each example, `[batch]`.
        one_label_per_frame: A label consumes its frame.

    Returns:
        `[batch, frames, labels]` float32; over the frames it sums to 1 for a valid label, and to 0
        on padding and where there is no path. No gradient.
    """

    def minus_log_likelihood(label: jax.Array) -> jax.Array:
        losses = transducer_loss_from_lattices(
            jax.lax.stop_gradient(log_blank),
            label,
            frame_lengths,
            label_lengths,
            one_label_per_frame=one_label_per_frame,
        )
        return jnp.sum(jnp.where(losses > NO_PATH, 0.0, losses))

    return -jax.grad(minus_log_likelihood)(jax.lax.stop_gradient(log_label)).astype(jnp.float32)


def posterior_entropy(posterior: jax.Array) -> Weighted:
    """How uncertain the emission frames are: 0 for a certain frame, log(frames) for any of them.

    Args:
        posterior: `[batch, frames, labels]`, of `emission_posterior`.

    Returns:
        Total entropy in nats, and the number of labels that have a posterior.
    """
    certain = jnp.maximum(posterior, 1e-30)
    entropy = -jnp.sum(jnp.where(posterior > 0, posterior * jnp.log(certain), 0.0), axis=1)
    return masked_sum(entropy, jnp.sum(posterior, axis=1) > 0.5)


def alignment_entropy(
    log_blank: jax.Array,
    log_label: jax.Array,
    frame_lengths: jax.Array,
    label_lengths: jax.Array,
    *,
    one_label_per_frame: bool = False,
) -> Weighted:
    """The entropy of the emission frames of a lattice; arguments as for `emission_posterior`."""
    return posterior_entropy(
        emission_posterior(
            log_blank,
            log_label,
            frame_lengths,
            label_lengths,
            one_label_per_frame=one_label_per_frame,
        )
    )
