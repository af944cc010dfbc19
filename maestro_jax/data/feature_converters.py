"""seqio feature converters, one a stream: fixed shapes and true lengths for users of plain seqio.

    lengths = {"audio": 240_000, "text": 64, "language": None}
    seqio.get_dataset("minivox_small_paired", lengths, PairedFeatureConverter(), "train")

gives the features of the stream's batches. The rules are those of `maestro_jax.data.rows`:
over-long transcribed examples become empty ones; over-long untranscribed speech is cropped, here at
its end. Note that `seqio.get_dataset` trims features before a converter sees them; to have
over-long examples emptied, pass the converter a dataset of `task.get_dataset(...,
trim_output_features=False)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import seqio
import tensorflow as tf

from maestro_jax.batches import SEQUENCE_LIMITS, STREAM_FEATURES

_Spec: TypeAlias = seqio.FeatureConverter.FeatureSpec


def _task_features(stream: str) -> dict[str, _Spec]:
    """What the converter of a stream reads."""
    return {
        name: spec for name, spec in _model_features(stream).items() if not name.endswith("_length")
    }


def _model_features(stream: str) -> dict[str, _Spec]:
    """What the converter of a stream writes."""
    return {
        name: _Spec(
            dtype=tf.int16 if name == "audio" else tf.int32,
            rank=1 if name in SEQUENCE_LIMITS else 0,
        )
        for name in STREAM_FEATURES[stream]
    }


class StreamFeatureConverter(seqio.FeatureConverter):
    """Pads the features of a task and adds their lengths; subclasses name the stream.

    Args:
        passthrough_features: Rank-0 features to keep as they are, such as the id of an example.
    """

    STREAM: str
    CROPS_AUDIO = False
    PACKING_FEATURE_DTYPES: Mapping[str, tf.dtypes.DType] = {}

    def __init__(self, passthrough_features: Mapping[str, _Spec] | None = None) -> None:
        # Over-long examples are this converter's own business, so seqio must not refuse them.
        super().__init__(
            pack=False, apply_length_check=False, passthrough_features=passthrough_features
        )

    def _convert_features(
        self, ds: tf.data.Dataset, task_feature_lengths: Mapping[str, int | None]
    ) -> tf.data.Dataset:
        """Pads, empties or crops each example."""
        sequences = [name for name in self.TASK_FEATURES if name in SEQUENCE_LIMITS]
        limits = {name: int(task_feature_lengths[name] or 0) for name in sequences}

        def convert(example: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            over_long = tf.constant(False)
            if not self.CROPS_AUDIO:
                for name, limit in limits.items():
                    over_long |= tf.shape(example[name])[0] > limit
            converted = {}
            for name in (*self.TASK_FEATURES, *self._passthrough_features):
                converted[name] = example[name]
            for name, limit in limits.items():
                length = tf.where(over_long, 0, tf.minimum(tf.shape(example[name])[0], limit))
                padded = tf.pad(example[name][:length], [[0, limit - length]])
                converted[name] = tf.ensure_shape(padded, [limit])
                converted[f"{name}_length"] = length
            return converted

        return ds.map(convert, num_parallel_calls=tf.data.AUTOTUNE)

    def get_model_feature_lengths(
        self, task_feature_lengths: Mapping[str, int | None]
    ) -> dict[str, int | None]:
        """The lengths of the converter's output: None for scalars."""
        lengths = {name: task_feature_lengths.get(name) for name in self.MODEL_FEATURES}
        return lengths | {name: None for name in self._passthrough_features}


class SpeechFeatureConverter(StreamFeatureConverter):
    """Untranscribed speech: audio."""

    STREAM = "speech"
    CROPS_AUDIO = True
    TASK_FEATURES = _task_features("speech")
    MODEL_FEATURES = _model_features("speech")


class TextFeatureConverter(StreamFeatureConverter):
    """Unspoken text."""

    STREAM = "text"
    TASK_FEATURES = _task_features("text")
    MODEL_FEATURES = _model_features("text")


class PairedFeatureConverter(StreamFeatureConverter):
    """Transcribed speech: audio and text."""

    STREAM = "paired"
    TASK_FEATURES = _task_features("paired")
    MODEL_FEATURES = _model_features("paired")


class MtFeatureConverter(StreamFeatureConverter):
    """Translated text: text and translation."""

    STREAM = "mt"
    TASK_FEATURES = _task_features("mt")
    MODEL_FEATURES = _model_features("mt")


class StFeatureConverter(StreamFeatureConverter):
    """Translated speech: audio and translation."""

    STREAM = "st"
    TASK_FEATURES = _task_features("st")
    MODEL_FEATURES = _model_features("st")


STREAM_CONVERTERS: dict[str, type[StreamFeatureConverter]] = {
    converter.STREAM: converter
    for converter in (
        SpeechFeatureConverter,
        TextFeatureConverter,
        PairedFeatureConverter,
        MtFeatureConverter,
        StFeatureConverter,
    )
}
"""The converter of each stream."""
