"""Computes the modality matching loss between speech frames and resampled, refined text frames.

    mse      |e_s - ê_t|^2 / features
    mae      |e_s - ê_t|_1 / features
    cosine   1 - cos(e_s, ê_t)
    infonce  (L(e_s, ê_t) + L(ê_t, e_s)) / 2, with for frame j of a and the frames k of b
             L(a, b) = -log  exp(cos(a_j, b_j) / tau) / sum over k of exp(cos(a_j, b_k) / tau)

Source: `mse` is MAESTRO's L_MM (section 2.2). The paper leaves open which side learns; USM (section
2.7) trains only the text side, which is the default here. Both sides are standardised first, so
that the loss cannot fall by shrinking the features. `infonce` is the frame-contrastive loss of
VQ-CTAP (arXiv 2408.05758): frames of the same token are not negatives of each other.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from maestro_jax.losses.distances import DISTANCES, distances
from maestro_jax.losses.reduction import Weighted, masked_sum
from maestro_jax.losses.similarity import l2_normalize, standardize
from maestro_jax.precision import EXACT

FORMS = (*DISTANCES, "infonce")
STOPPED = ("speech", "text", "none")
NEGATIVES = ("utterance", "batch")


def matching_loss(
    speech: jax.Array,
    text: jax.Array,
    mask: jax.Array,
    *,
    form: str = "mse",
    stop_gradient: str = "speech",
    normalize: bool = True,
    temperature: float = 0.1,
    negatives: str = "utterance",
    labels: jax.Array | None = None,
) -> Weighted:
    """Computes the distance between the two representations of an utterance, frame by frame.

    Args:
        speech: `[batch, frames, features]`, e_s.
        text: `[batch, frames, features]`, ê_t, resampled by the alignment to the same frames.
        mask: `[batch, frames]` bool, the frames that count.
        form: `mse` or `mae` (means over features), `cosine` (one minus the cosine) or `infonce`
            (nats).
        stop_gradient: The side that is a target and gets no gradient: `speech`, `text` or `none`.
        normalize: Whether to standardise both sides over features first. The cosine is then the
            correlation of the features.
        temperature: tau of `infonce`.
        negatives: Source of the negatives of `infonce`: the same `utterance`, or the whole `batch`.
            The latter holds (batch x frames)^2 similarities, split over the devices by rows.
        labels: `[batch, frames]` int32, for `infonce`: frames of equal labels are not negatives of
            each other. If None, all other frames are negatives.

    Returns:
        Total over the frames and their count. For `infonce` a frame without any negative does not
        count.

    Raises:
        ValueError: If a choice is unknown.
    """
    for value, choices in (
        (form, FORMS),
        (stop_gradient, STOPPED),
        (negatives, NEGATIVES),
    ):
        if value not in choices:
            raise ValueError(f"Unknown matching choice {value!r}; choose one of {choices}.")
    speech, text = prepared(speech, text, stop_gradient, normalize)
    if form != "infonce":
        return masked_sum(distances(speech, text, form), mask)
    if negatives == "batch":
        # One row of all frames: [1, batch * frames, features]. The speech stays split over devices;
        # the text is gathered, so that a device compares its share of the speech with all texts.
        size = mask.size
        speech = nn.with_logical_constraint(speech.reshape(1, size, -1), (None, "batch", None))
        text = nn.with_logical_constraint(text.reshape(1, size, -1), (None, None, None))
        mask = mask.reshape(1, size)
        labels = None if labels is None else labels.reshape(1, size)
    return _frame_contrastive(speech, text, mask, labels, temperature)


def prepared(
    speech: jax.Array, text: jax.Array, stop_gradient: str, normalize: bool
) -> tuple[jax.Array, jax.Array]:
    """Returns both sides, of which one may be a target without a gradient, as they are compared.

    Args:
        speech: `[batch, frames, features]`.
        text: `[batch, positions, features]`.
        stop_gradient: The side that is a target: `speech`, `text` or `none`.
        normalize: Whether to standardise both sides over features.
    """
    if stop_gradient == "speech":
        speech = jax.lax.stop_gradient(speech)
    elif stop_gradient == "text":
        text = jax.lax.stop_gradient(text)
    if normalize:
        return standardize(speech), standardize(text)
    return speech, text


def _frame_contrastive(
    speech: jax.Array,
    text: jax.Array,
    mask: jax.Array,
    labels: jax.Array | None,
    temperature: float,
) -> Weighted:
    """Computes InfoNCE in both directions within each row."""
    frames = mask.shape[1]
    similarity = jnp.einsum(
        "bsd,btd->bst", l2_normalize(speech), l2_normalize(text), precision=EXACT
    )
    similarity = similarity / temperature
    # [batch, speech frames, text frames] from here on.
    own = jnp.eye(frames, dtype=bool)[None]
    others = mask[:, :, None] & mask[:, None, :] & ~own
    if labels is not None:
        others = others & (labels[:, :, None] != labels[:, None, :])
    # The positive stays even in padding: a log-sum-exp over nothing is minus infinity.
    similarity = jnp.where(others | own, similarity, -jnp.inf)
    # [batch, frames]. Zeros off the diagonal in place of -inf: no product can make them NaN.
    positive = jnp.einsum("bss->bs", jnp.where(own, similarity, 0.0))
    # L(a, b) of the module docstring: -log softmax of the diagonal, along rows and along columns.
    to_text = jax.nn.logsumexp(similarity, axis=2) - positive
    to_speech = jax.nn.logsumexp(similarity, axis=1) - positive
    # `others` is symmetric in its last two axes: a frame has negatives in both directions or in
    # neither.
    return masked_sum(0.5 * (to_text + to_speech), mask & jnp.any(others, axis=2))
