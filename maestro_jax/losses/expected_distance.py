"""Computes the consistency of speech and text under the alignments of a transducer.

ASTRA (Gaur et al. 2024, arXiv 2406.06664) matches speech embeddings with text embeddings, one per
token, without bringing them to one length. Its consistency objective L_c weights the distance of
frame `t` and token `u` by how probable it is that the transducer emits the token there. With
`d[t, u]` the distance and `gamma` the posterior of a label arc, given the labels (as in
`maestro_jax.losses.transducer_alignment`)::

    L_c = E over alignments of the sum over labels u of d[t(u), u]
        = sum over t and u of gamma[t, u] d[t, u],    gamma[t, u] = d log P(labels) / d y[t, u]

Since `gamma` is minus the gradient of the RNN-T loss with respect to its label arcs, L_c has the
gradient of an RNN-T loss whose label arcs are weighted by distances: the paper's weighted RNN-T
loss. Blanks carry no distance.

The paper is read from its abstract and summaries. Chosen here: posteriors are weights and pass no
gradient on to the transducer, and the sum is divided by the number of labels.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from maestro_jax.losses.distances import pairwise_distances
from maestro_jax.losses.reduction import Weighted


def expected_distance(
    speech: jax.Array,
    text: jax.Array,
    posterior: jax.Array,
    speech_lengths: jax.Array,
    text_lengths: jax.Array,
    *,
    form: str = "mae",
) -> Weighted:
    """Computes the expected distance of tokens to the frames that emit them.

    Args:
        speech: `[batch, frames, features]`.
        text: `[batch, labels, features]`, one vector per label.
        posterior: `[batch, frames, labels]`, from
            `maestro_jax.losses.transducer_alignment.emission_posterior`.
        speech_lengths: Valid frames, `[batch]`.
        text_lengths: Valid labels, `[batch]`.
        form: One of `maestro_jax.losses.distances.DISTANCES`.

    Returns:
        Total distance over the labels, and the number of labels of the examples with frames. A
        label without a path has no posterior and adds nothing to the total.
    """
    weights = jax.lax.stop_gradient(posterior)
    costs = pairwise_distances(speech, text, form)  # [batch, frames, labels]
    count = jnp.sum(jnp.where(speech_lengths > 0, text_lengths, 0))
    # The padding has posteriors of exactly 0, but perhaps distances that are not numbers.
    total = jnp.sum(jnp.where(weights > 0, weights * costs, 0.0))
    return total, count.astype(jnp.float32)
