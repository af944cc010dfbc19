"""The contrastive and diversity losses of w2v-BERT, computed in float32.

For a masked frame j with context c_j, its own code q_j and a set D_j of codes of other masked
frames of the same utterance,

    L_w = -log  exp(cos(c_j, q_j) / kappa) / sum over q in {q_j} + D_j of exp(cos(c_j, q) / kappa)

Source: wav2vec 2.0, equation 3; w2v-BERT, section 3.3.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from maestro_jax.losses.reduction import Weighted, masked_sum
from maestro_jax.precision import EXACT


def sample_distractors(rng: jax.Array, masked: jax.Array, count: int) -> jax.Array:
    """For each frame, other masked frames of its utterance, uniformly with replacement.

    Args:
        rng: Random key.
        masked: `[batch, frames]` bool.
        count: Distractors a frame.

    Returns:
        `[batch, frames, count]` int32 frame indices. A masked frame never gets itself where its
        utterance has another masked frame; entries of other frames mean nothing.
    """
    batch, frames = masked.shape
    # Masked frames first, in order: the k-th masked frame of a row stands at place k.
    order = jnp.argsort(~masked, axis=1, stable=True)
    rank = jnp.cumsum(masked, axis=1) - 1
    total = jnp.sum(masked, axis=1)[:, None, None]
    uniform = jax.random.uniform(rng, (batch, frames, count))
    others = jnp.maximum(total - 1, 1)
    draw = jnp.minimum(jnp.floor(uniform * others).astype(jnp.int32), others - 1)
    # Skip one's own place by shifting what is not below it.
    draw = draw + (draw >= rank[:, :, None])
    draw = jnp.minimum(draw, jnp.maximum(total - 1, 0))
    return jnp.take_along_axis(order[:, :, None], draw.reshape(batch, -1, 1), axis=1).reshape(
        batch, frames, count
    )


def contrastive_loss(
    rng: jax.Array,
    context: jax.Array,
    codes: jax.Array,
    ids: jax.Array,
    masked: jax.Array,
    *,
    distractors: int = 100,
    temperature: float = 0.1,
) -> tuple[Weighted, Weighted]:
    """L_w over the masked frames.

    Distractors equal to the positive code are left out, as in wav2vec 2.0: they cannot be told
    from it. Equal are codes of one id: whether the vectors look equal depends on rounding.

    Args:
        rng: Random key for the distractors.
        context: `[batch, frames, code_features]`, the context network's output, projected.
        codes: `[batch, frames, code_features]`, quantized unmasked features.
        ids: `[batch, frames]` int32, which entry of the codebook each of them is.
        masked: `[batch, frames]` bool, the masked valid frames.
        distractors: Negatives a frame.
        temperature: kappa.

    Returns:
        The loss in nats and the accuracy (share of frames whose own code is most similar), each as
        a total and a count over masked frames that have at least one distractor.
    """
    context = _unit(context.astype(jnp.float32))
    codes = _unit(codes.astype(jnp.float32))
    chosen = sample_distractors(rng, masked, distractors)
    # All frame-to-frame similarities, then a gather: frames^2 numbers instead of
    # frames x distractors x features.
    similarity = jnp.einsum("btd,bsd->bts", context, codes, precision=EXACT) / temperature
    positive = jnp.diagonal(similarity, axis1=1, axis2=2)
    negatives = jnp.take_along_axis(similarity, chosen, axis=2)
    drawn = jnp.take_along_axis(ids, chosen.reshape(len(ids), -1), axis=1).reshape(chosen.shape)
    is_itself = drawn == ids[:, :, None]
    negatives = jnp.where(is_itself, -1e9, negatives)
    logits = jnp.concatenate([positive[:, :, None], negatives], axis=2)
    loss = jax.nn.logsumexp(logits, axis=2) - positive
    usable = masked & jnp.any(~is_itself, axis=2)
    correct = positive > jnp.max(negatives, axis=2)
    return masked_sum(loss, usable), masked_sum(correct, usable)


def contrastive_chance(ids: jax.Array, masked: jax.Array, distractors: int) -> Weighted:
    """The accuracy of a network to which all codes look alike.

    Args:
        ids: `[batch, frames]` int32, which entry of the codebook each frame's code is.
        masked: `[batch, frames]` bool, the masked valid frames.
        distractors: Negatives a frame.

    Returns:
        Total and count, over the masked frames that can have a distractor, of one over the number
        of frames to choose from: its own, and the masked ones of its utterance with another code,
        as far as so many are drawn.
    """
    others = (ids[:, :, None] != ids[:, None, :]) & masked[:, None, :]
    count = jnp.minimum(jnp.sum(others, axis=2), distractors)
    return masked_sum(1.0 / (1.0 + count), masked & (count > 0))


def diversity_loss(probabilities: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """One minus the normalised perplexity of the average code distribution (L_d).

    Args:
        probabilities: `[batch, frames, codes]`, softmax without noise.
        mask: `[batch, frames]` bool, the frames to average over.

    Returns:
        `1 - exp(H(p)) / codes` and the perplexity `exp(H(p))`; with no valid frame the loss is 0.
    """
    codes = probabilities.shape[-1]
    weights = mask.astype(jnp.float32)[:, :, None]
    count = jnp.sum(weights)
    average = jnp.sum(probabilities * weights, axis=(0, 1)) / jnp.maximum(count, 1.0)
    entropy = -jnp.sum(average * jnp.log(average + 1e-9))
    perplexity = jnp.exp(entropy)
    loss = jnp.where(count > 0, 1.0 - perplexity / codes, 0.0)
    return loss, perplexity


def _unit(x: jax.Array) -> jax.Array:
    """Vectors of length one; the small constant keeps the gradient of a zero vector finite."""
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + 1e-8)
