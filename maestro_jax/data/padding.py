"""Pads or crops examples of any length into batches of fixed shape."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from maestro_jax.batches import (
    AUDIO_FEATURES,
    COMPANIONS,
    SEQUENCE_LIMITS,
    STREAM_FEATURES,
    StreamConfig,
    stream_features,
    stream_sequences,
)


def stream_limits(stream: str, config: StreamConfig) -> dict[str, int]:
    """Returns the padded length of each feature of a stream that has a length."""
    return {name: getattr(config, SEQUENCE_LIMITS[name]) for name in stream_sequences(stream)}


def row_limits(stream: str, config: StreamConfig) -> dict[str, int]:
    """Returns `stream_limits`, and the padded lengths of features that accompany others."""
    limits = stream_limits(stream, config)
    features = stream_features(stream, config)
    return limits | {name: limits[to] for name, to in COMPANIONS.items() if name in features}


def scalar_features(stream: str) -> tuple[str, ...]:
    """Returns the scalar features of a stream: its language ids."""
    return tuple(
        name
        for name in STREAM_FEATURES[stream]
        if name not in SEQUENCE_LIMITS and not name.endswith("_length")
    )


def empty_batch(
    limits: Mapping[str, int], identities: tuple[str, ...], rows: int
) -> dict[str, np.ndarray]:
    """Returns a batch without examples.

    Args:
        limits: The padded length of each feature that has one.
        identities: The scalar features.
        rows: Number of rows.

    Returns:
        Zeros: audio int16 `[rows, samples]`, tokens int32 `[rows, tokens]`, their lengths and the
        scalar features int32 `[rows]`.
    """
    features: dict[str, np.ndarray] = {}
    for name, limit in limits.items():
        features[name] = np.zeros((rows, limit), np.int16 if name in AUDIO_FEATURES else np.int32)
        if name not in COMPANIONS:
            features[f"{name}_length"] = np.zeros(rows, np.int32)
    for name in identities:
        features[name] = np.zeros(rows, np.int32)
    return features


def pad_example(
    features: Mapping[str, np.ndarray],
    row: int,
    example: Mapping[str, Any],
    limits: Mapping[str, int],
    identities: tuple[str, ...],
    *,
    crop: int | None = None,
) -> bool:
    """Pads an example into an empty row of a batch.

    An example with any feature over its limit cannot be shortened without breaking the match of its
    parts, so its row stays empty (every length 0). Audio alone can: with ``crop`` given, a window
    of it is kept.

    Args:
        features: Batch, as of `empty_batch`; changed in place.
        row: Index of the row.
        example: audio int16 `[samples]`, tokens int `[tokens]`, scalar language ids. What
            accompanies a feature (`batches.COMPANIONS`) is as long as that.
        limits: The padded length of each feature that has one.
        identities: The scalar features.
        crop: Any non-negative integer: chooses the window of over-long audio.

    Returns:
        Whether the example was over-long, be it cropped or left out.
    """
    for name in identities:
        features[name][row] = example[name]
    over_long = any(len(example[name]) > limit for name, limit in limits.items())
    if over_long and crop is None:
        return True
    for name, limit in limits.items():
        values = example[name]
        if len(values) > limit and crop is not None:
            # Companions have the length of what they accompany, and with the same number the same
            # window.
            begin = crop % (len(values) - limit + 1)
            values = values[begin : begin + limit]
        features[name][row, : len(values)] = values
        if name not in COMPANIONS:
            features[f"{name}_length"][row] = len(values)
    return over_long
