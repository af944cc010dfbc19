"""Computes the loss of predicted durations against the durations of the RNN-T alignment.

    L_D = BCE(1[d > 0], p) + |d - d̂| for tokens with d > 0

Source: MAESTRO does not spell it out; this is Parallel Tacotron's form with the two heads that the
JOIST patent describes for this model. `log_mse` compares logarithms instead. Targets are clipped to
the longest duration that the model can predict: that of the last label includes final silence.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import optax

from maestro_jax.losses.reduction import Weighted, masked_sum

FORMS = ("l1", "log_mse")


def duration_loss(
    nonzero_logit: jax.Array,
    frames: jax.Array,
    targets: jax.Array,
    mask: jax.Array,
    *,
    form: str = "l1",
    threshold: float = 0.5,
    max_frames: int | None = None,
) -> tuple[Weighted, Weighted]:
    """Computes both parts of the loss, and the error in frames.

    Args:
        nonzero_logit: `[batch, tokens]`, log-odds of a duration above zero.
        frames: `[batch, tokens]`, predicted duration in frames, given that it is not zero.
        targets: `[batch, tokens]` int32, aligned durations in frames; no gradient.
        mask: `[batch, tokens]` bool, the tokens that count.
        form: `l1` (frames) or `log_mse` (squared difference of log(1 + frames)).
        threshold: Probability of a nonzero duration above which the error counts a token's
            frames.
        max_frames: Longest duration that the model predicts; None for no limit.

    Returns:
        The loss (total over tokens, count) and the absolute error of the rounded prediction in
        frames (total, count). The error is against targets that are not clipped.

    Raises:
        ValueError: If the form is unknown.
    """
    aligned = jax.lax.stop_gradient(targets).astype(jnp.float32)
    longest = jnp.inf if max_frames is None else float(max_frames)
    # The last label of an utterance owns the silence at the end, which says nothing of the token.
    targets = jnp.minimum(aligned, longest)
    is_nonzero = targets > 0
    # From log-odds: log(sigmoid) of a saturated head would be minus infinity.
    presence = optax.sigmoid_binary_cross_entropy(nonzero_logit, is_nonzero.astype(jnp.float32))
    if form == "l1":
        distance = jnp.abs(frames - targets)
    elif form == "log_mse":
        distance = jnp.square(jnp.log1p(frames) - jnp.log1p(targets))
    else:
        raise ValueError(f"Unknown duration form {form!r}; choose one of {FORMS}.")
    # The second head predicts the duration given that there is one; silent tokens teach it nothing.
    loss = presence + jnp.where(is_nonzero, distance, 0.0)
    # The threshold in log-odds: a sigmoid in float32 saturates, the logit does not.
    log_odds = math.log(threshold) - math.log1p(-threshold)
    rounded = jnp.where(nonzero_logit > log_odds, jnp.round(jnp.clip(frames, 1.0, longest)), 0.0)
    return masked_sum(loss, mask), masked_sum(jnp.abs(rounded - aligned), mask)


def gaussian_duration_loss(
    mean: jax.Array, deviation: jax.Array, targets: jax.Array, mask: jax.Array
) -> Weighted:
    """Computes the negative log-likelihood of durations under one Gaussian per token.

        log s + (d - m)^2 / (2 s^2) + log(2 pi) / 2 for tokens with d > 0

    Source: the sub-word Gaussians of JOIST (arXiv 2210.07353).

    Args:
        mean: `[batch, tokens]`, m in frames.
        deviation: `[batch, tokens]`, s in frames, positive.
        targets: `[batch, tokens]` int32, aligned durations in frames; no gradient.
        mask: `[batch, tokens]` bool, the tokens that count, if their duration is not zero.

    Returns:
        Total in nats over tokens, and their count.
    """
    targets = jax.lax.stop_gradient(targets)
    distance = (targets.astype(jnp.float32) - mean) / deviation
    loss = jnp.log(deviation) + 0.5 * jnp.square(distance) + 0.5 * math.log(2.0 * math.pi)
    return masked_sum(loss, mask & (targets > 0))
