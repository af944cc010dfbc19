"""Durations that stay as they were learned while the text encoder learns something else.

The duration model reads the text encoder. Pairs of speech and text train both; a loss that trains
the text encoder alone, such as text translation in fine-tuning, moves what the duration model
reads, and the durations with it. A run of that kind keeps a copy of the two networks as they are
before its first step. The copy is part of its parameters, under `frozen_durations`: it is never
trained, every checkpoint has it, and durations are predicted by it in training and in decoding.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

HELD = "frozen_durations"
READ = ("text_encoder", "duration_model")
"""The networks on the way from a text to its durations."""


def hold(params: Mapping[str, Any]) -> dict[str, Any]:
    """Add a copy of what predicts durations to a model's parameters, or make the copy anew.

    Args:
        params: The tree of parameters, boxed or not; shapes stay shapes.
    """

    def copy(leaf: Any) -> Any:
        return leaf if isinstance(leaf, jax.ShapeDtypeStruct) else jnp.copy(leaf)

    return {**params, HELD: jax.tree.map(copy, {name: params[name] for name in READ})}


def to_copy(wanted: Iterable[str], loaded: Iterable[str]) -> tuple[str, ...]:
    """The parameters that are to be copied after a restore.

    Args:
        wanted: Names of the parameters of a model.
        loaded: Names of those that a checkpoint gave.

    Returns:
        All that the model holds of durations, or nothing if the checkpoint came with a copy of its
        own: its durations were predicted by that.
    """
    if any(name.startswith(f"{HELD}/") for name in loaded):
        return ()
    return tuple(name for name in wanted if name.startswith(f"{HELD}/"))


def duration_params(params: Mapping[str, Any]) -> Mapping[str, Any]:
    """Parameters to predict durations with: those that are held, if the model holds any."""
    return {**params, **params[HELD]} if HELD in params else params


def predicted_durations(
    model: Any,
    params: Mapping[str, Any],
    tokens: jax.Array,
    mask: jax.Array,
    language: jax.Array | None,
) -> jax.Array:
    """The frames that a model gives each token of a text.

    Args:
        model: A `Maestro`.
        params: Its parameters.
        tokens: `[batch, tokens]` int32.
        mask: `[batch, tokens]` bool, True = valid.
        language: `[batch]` language ids.

    Returns:
        `[batch, tokens]` int32, 0 on padding.
    """
    variables = {"params": duration_params(params)}
    embedded = model.apply(variables, tokens, mask, language, method="encode_text")
    predicted = model.apply(variables, embedded, mask, method="predict_durations")
    return model.apply(variables, predicted, mask, method="round_durations")
