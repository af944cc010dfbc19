"""seqio preprocessors from the records of a corpus to the features of a stream.

Each is one-to-one: the stream loader finds examples by their index, so a preprocessor may empty an
example, but must never drop one.
"""

from __future__ import annotations

from collections.abc import Callable

import seqio
import tensorflow as tf

from maestro_jax.batches import STREAM_FEATURES
from maestro_jax.text.languages import LANGUAGES, language_id

Preprocessor = Callable[[tf.data.Dataset], tf.data.Dataset]


def language_ids(target_language: str | None = None) -> Preprocessor:
    """Turns the string feature ``language`` into an id.

    Args:
        target_language: ISO 639-1 code of the translations; adds the feature ``target_language``.

    Returns:
        A preprocessor: ``language`` becomes an int32 scalar and its string goes to
        ``language_code``; a language outside `LANGUAGES` is an error when it is read.
    """
    target = None if target_language is None else language_id(target_language)

    def preprocess(dataset: tf.data.Dataset) -> tf.data.Dataset:
        codes = tf.constant(LANGUAGES)

        def convert(example: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            matches = tf.equal(codes, example["language"])
            known = tf.debugging.Assert(
                tf.reduce_any(matches), ["unknown language", example["language"]]
            )
            with tf.control_dependencies([known]):
                identity = tf.argmax(tf.cast(matches, tf.int32), output_type=tf.int32)
            converted = {**example, "language": identity, "language_code": example["language"]}
            if target is not None:
                converted["target_language"] = tf.constant(target, tf.int32)
            return converted

        return dataset.map(convert, num_parallel_calls=tf.data.AUTOTUNE)

    return preprocess


def set_language(language: str, target_language: str | None = None) -> Preprocessor:
    """Gives every example the same language, for corpora that do not name it.

    Args:
        language: ISO 639-1 code.
        target_language: ISO 639-1 code of the translations, if there are any.

    Returns:
        A preprocessor that sets ``language`` (and ``target_language``) to int32 ids.
    """
    identities = {"language": language_id(language)}
    if target_language is not None:
        identities["target_language"] = language_id(target_language)

    def preprocess(dataset: tf.data.Dataset) -> tf.data.Dataset:
        def convert(example: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            added = {name: tf.constant(value, tf.int32) for name, value in identities.items()}
            return {**example, **added, "language_code": tf.constant(language)}

        return dataset.map(convert, num_parallel_calls=tf.data.AUTOTUNE)

    return preprocess


def pronounced() -> Preprocessor:
    """Replaces ``text`` by its phonemes; after `language_ids` or `set_language`.

    Returns:
        A preprocessor: words in the letters of the IPA, by espeak-ng, which is part of the extra
        ``minivox``. What was written stays in ``raw_text``.
    """

    def convert(text: bytes, language: bytes) -> bytes:
        from maestro_jax.text.phonemes import phonemes

        return phonemes([text.decode()], language.decode())[0].encode()

    def preprocess(dataset: tf.data.Dataset) -> tf.data.Dataset:
        def replace(example: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            arguments = [example["text"], example["language_code"]]
            text = tf.numpy_function(convert, arguments, tf.string, stateful=False)
            return {**example, "text": tf.ensure_shape(text, [])}

        return dataset.map(replace)

    return preprocess


def stream_preprocessors(
    stream: str, target_language: str = "en", *, phonemes: bool = False
) -> list[Preprocessor]:
    """The preprocessors from a record (audio, text, translation, language ...) to a stream.

    Args:
        stream: One of `maestro_jax.batches.STREAM_FEATURES`.
        target_language: The language of the translations of ``mt`` and ``st``.
        phonemes: Whether texts are read as they are pronounced; see `pronounced`.

    Returns:
        Preprocessors of a seqio task; tokenised strings stay as ``*_pretokenized``.
    """
    target = target_language if stream in ("mt", "st") else None
    steps: list[Preprocessor] = [language_ids(target)]
    if phonemes and "text" in STREAM_FEATURES[stream]:
        steps.append(pronounced())
    if stream != "speech":
        steps.append(seqio.preprocessors.tokenize)
    return steps
