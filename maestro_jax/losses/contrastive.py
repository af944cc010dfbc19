"""Computes the contrastive and diversity losses of w2v-BERT, in float32.

For a masked frame j with context c_j, its own code q_j and a set D_j of codes of other masked
frames of the same utterance,

    L_w = -log  exp(cos(c_j, q_j) / kappa) / sum over q in {q_j} + D_j of exp(cos(c_j, q) / kappa)

Source: wav2vec 2.0, equation 3; w2v-BERT, section 3.3.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from maestro_jax.losses.reduction import Weighted, masked_sum
from maestro_jax.losses.similarity import l2_normalize
from maestro_jax.precision import EXACT


def sample_distractors(rng: jax.Array, masked: jax.Array, count: int) -> jax.Array:
    """Draws other masked frames of the same utterance, uniformly with replacement.

    Args:
        rng: Random key.
        masked: `[batch, frames]` bool.
        count: Distractors per frame.

    Returns:
        int32 frame indices, `[batch, frames, count]`. A masked frame never draws itself unless it
        is the only masked frame of its utterance; the entries of unmasked frames mean nothing.
    """
    batch, frames = masked.shape
    # [batch, frames]: `order` lists masked frames first, so that entry k is the k-th masked frame;
    # `rank` is the inverse, the number of masked frames before a masked frame.
    order = jnp.argsort(~masked, axis=1, stable=True)
    rank = jnp.cumsum(masked, axis=1) - 1
    total = jnp.sum(masked, axis=1)[:, None, None]
    # Ranks 0 ... total - 2 at random; the minimum guards against a product that rounds up to
    # `others`.
    uniform = jax.random.uniform(rng, (batch, frames, count))
    others = jnp.maximum(total - 1, 1)
    draw = jnp.minimum(jnp.floor(uniform * others).astype(jnp.int32), others - 1)
    # Drawn among all but one: ranks from the frame's own on are shifted past it.
    draw = draw + (draw >= rank[:, :, None])
    # The only masked frame of an utterance has none to shift to: it draws itself.
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
    """Computes L_w over the masked frames.

    Distractors equal to the positive code are left out, as in wav2vec 2.0. Codes are equal if their
    ids are: whether vectors compare equal would depend on rounding.

    Args:
        rng: Random key for the distractors.
        context: `[batch, frames, code_features]`, the context network's output, projected.
        codes: `[batch, frames, code_features]`, quantized unmasked features.
        ids: `[batch, frames]` int32, codebook entry of each code.
        masked: `[batch, frames]` bool, the masked valid frames.
        distractors: Negatives per frame.
        temperature: kappa.

    Returns:
        The loss in nats and the accuracy (fraction of frames whose own code is the most similar),
        each as a total and a count over masked frames that have at least one distractor.
    """
    context = l2_normalize(context)
    codes = l2_normalize(codes)
    sampled = sample_distractors(rng, masked, distractors)
    # All similarities of frames with frames, then a gather: frames^2 numbers in place of
    # frames x distractors x features.
    similarity = jnp.einsum("btd,bsd->bts", context, codes, precision=EXACT) / temperature
    # [batch, frames]: a frame and its own code.
    positive = jnp.diagonal(similarity, axis1=1, axis2=2)
    negatives = jnp.take_along_axis(similarity, sampled, axis=2)
    sampled_ids = jnp.take_along_axis(ids, sampled.reshape(len(ids), -1), axis=1)
    is_positive = sampled_ids.reshape(sampled.shape) == ids[:, :, None]
    # exp(-1e9) is 0: no weight in the softmax, and never the most similar.
    negatives = jnp.where(is_positive, -1e9, negatives)  # [batch, frames, distractors]
    logits = jnp.concatenate([positive[:, :, None], negatives], axis=2)
    # -log softmax of entry 0, the positive.
    loss = jax.nn.logsumexp(logits, axis=2) - positive
    usable = masked & jnp.any(~is_positive, axis=2)
    correct = positive > jnp.max(negatives, axis=2)
    return masked_sum(loss, usable), masked_sum(correct, usable)


def contrastive_chance(ids: jax.Array, masked: jax.Array, distractors: int) -> Weighted:
    """Computes the accuracy of a network to which all codes are equally similar.

    Args:
        ids: `[batch, frames]` int32, codebook entry of each frame's code.
        masked: `[batch, frames]` bool, the masked valid frames.
        distractors: Negatives per frame.

    Returns:
        Total and count, over the masked frames that can have a distractor, of 1 / (1 + n), where n
        is the number of masked frames of the utterance with another code, at most `distractors`.
    """
    others = (ids[:, :, None] != ids[:, None, :]) & masked[:, None, :]
    count = jnp.minimum(jnp.sum(others, axis=2), distractors)
    return masked_sum(1.0 / (1.0 + count), masked & (count > 0))


def diversity_loss(probabilities: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Computes one minus the normalised perplexity of the average code distribution (L_d).

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
    diversity = perplexity(average)
    loss = jnp.where(count > 0, 1.0 - diversity / codes, 0.0)
    return loss, diversity


def perplexity(probabilities: jax.Array) -> jax.Array:
    """Computes exp(H(p)): the number of codes that, used evenly, would be as diverse.

    Args:
        probabilities: `[..., codes]`, of sum 1 over the codes.

    Returns:
        `[...]` float32.
    """
    # An unused code has probability 0; 1e-9 keeps its logarithm, and the gradient, finite.
    return jnp.exp(-jnp.sum(probabilities * jnp.log(probabilities + 1e-9), axis=-1))


def code_counts(ids: jax.Array, mask: jax.Array, codes: int) -> jax.Array:
    """Counts how often each code was chosen.

    Args:
        ids: `[batch, frames]` or `[batch, frames, codebooks]` int32.
        mask: `[batch, frames]` bool, the frames that count.
        codes: Number of entries of a codebook.

    Returns:
        `[codebooks, codes]` float32, one codebook for ids without that axis.
    """
    ids = ids.reshape(*mask.shape, -1)
    codebooks = ids.shape[-1]
    weights = jnp.broadcast_to(mask[:, :, None], ids.shape).astype(jnp.float32)
    return jnp.zeros((codebooks, codes)).at[jnp.arange(codebooks), ids].add(weights, mode="drop")
