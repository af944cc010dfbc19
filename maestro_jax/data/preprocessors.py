"""seqio preprocessors from the records of a corpus to the features of a stream.

Each is one-to-one: the stream loader finds examples by their index, so a preprocessor may empty an
example, but must never drop one.
"""

from __future__ import annotations

from collections.abc import Callable

import seqio
import tensorflow as tf

from maestro_jax.batches import STREAM_FEATURES
from maestro_jax.text.languages import normalize_language

Preprocessor = Callable[[tf.data.Dataset], tf.data.Dataset]


def add_target_language(language: str) -> Preprocessor:
    """Returns a preprocessor that adds the feature ``target_language``, a string.

    Args:
        language: Code of the language of all translations.
    """
    code = normalize_language(language)

    def preprocess(dataset: tf.data.Dataset) -> tf.data.Dataset:
        return dataset.map(lambda example: {**example, "target_language": tf.constant(code)})

    return preprocess


def pronounced() -> Preprocessor:
    """Returns a preprocessor that replaces ``text`` by its phonemes.

    Words are written in the letters of the IPA, by espeak-ng, which is part of the extra
    ``minivox``. The language is read from the string ``language``; what was written stays in
    ``raw_text``.
    """

    def convert(text: bytes, language: bytes) -> bytes:
        from maestro_jax.text.phonemes import phonemes

        return phonemes([text.decode()], language.decode())[0].encode()

    def preprocess(dataset: tf.data.Dataset) -> tf.data.Dataset:
        def replace(example: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            arguments = [example["text"], example["language"]]
            text = tf.numpy_function(convert, arguments, tf.string, stateful=False)
            return {**example, "text": tf.ensure_shape(text, [])}

        return dataset.map(replace)

    return preprocess


def stream_preprocessors(
    stream: str, target_language: str = "en", *, phonemes: bool = False
) -> list[Preprocessor]:
    """Returns the preprocessors from a record (audio, text, translation, language) to a stream.

    Args:
        stream: One of `maestro_jax.batches.STREAM_FEATURES`.
        target_language: Code of the language of the translations of ``mt`` and ``st``.
        phonemes: Whether texts are read as they are pronounced; see `pronounced`.

    Returns:
        Preprocessors of a seqio task; tokenised strings stay as ``*_pretokenized``.
    """
    steps: list[Preprocessor] = []
    if stream in ("mt", "st"):
        steps.append(add_target_language(target_language))
    if phonemes and "text" in STREAM_FEATURES[stream]:
        steps.append(pronounced())
    if stream != "speech":
        steps.append(seqio.preprocessors.tokenize)
    return steps
