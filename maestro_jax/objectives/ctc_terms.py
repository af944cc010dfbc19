"""The CTC term of recognition."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from maestro_jax.errors import UserError
from maestro_jax.losses.ctc import ctc_loss
from maestro_jax.losses.reduction import Weighted
from maestro_jax.objectives.base import Parts
from maestro_jax.objectives.transducer_terms import Labels


def ctc_term(
    parts: Parts, context: jax.Array, mask: jax.Array, labels: Labels
) -> tuple[Weighted, Weighted]:
    """-log P(labels | context) of the CTC head, in nats a label.

    Args:
        parts: The model.
        context: `[batch, frames, features]` from the shared encoder.
        mask: `[batch, frames]` bool; an example without frames does not count.
        labels: What it is to say.

    Returns:
        The total in nats and the number of labels of the examples that have a path; and how many
        have none, as a metric that is summed.

    Raises:
        UserError: The model has no CTC head.
    """
    if parts.model.ctc_head is None:
        raise UserError(
            "ctc_weight is above 0, but the model has no CTC head: set Maestro.ctc_head (add "
            "models/heads/ctc.gin to the gin files), or set ctc_weight to 0."
        )
    logits = parts("ctc_logits", context, deterministic=parts.deterministic)
    frame_lengths = jnp.sum(mask, axis=1).astype(jnp.int32)
    return ctc_loss(logits, labels.tokens, frame_lengths, labels.lengths)
