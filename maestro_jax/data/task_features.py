"""What a task of each stream gives: output features, and the task class that knows its stream."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import seqio
import tensorflow as tf

from maestro_jax.batches import SEQUENCE_LIMITS, STREAM_FEATURES, stream_sequences
from maestro_jax.data.data_scope import active_data_root
from maestro_jax.errors import UserError
from maestro_jax.vocabularies.byte_vocabulary import CONTENT, ByteVocabulary
from maestro_jax.vocabularies.loading import load_vocabulary
from maestro_jax.vocabularies.vocabulary import EOS_ID, UNK_ID, Vocabulary


@functools.lru_cache(maxsize=8)
def _vocabulary(path: str) -> seqio.SentencePieceVocabulary | seqio.ByteVocabulary:
    if Path(path).read_bytes() == CONTENT:
        return seqio.ByteVocabulary()
    return seqio.SentencePieceVocabulary(path)


class PreparedVocabulary(seqio.Vocabulary):
    """A vocabulary below the data root, of SentencePiece or bytes, read when it is first used.

    Args:
        file: Its path below the data root, such as ``vocabularies/minivox_small.model``.
        remedy: The command that makes it, for messages.
    """

    def __init__(self, file: str, remedy: str) -> None:
        self._file = file
        self._remedy = remedy
        super().__init__(extra_ids=0)

    @property
    def file(self) -> str:
        """The path of the model below the data root."""
        return self._file

    @property
    def sentencepiece_model_file(self) -> str:
        """The path of the model, or of the file that says that tokens are bytes.

        Raises:
            UserError: It is not there.
        """
        path = active_data_root() / self._file
        if not path.is_file():
            raise UserError(f"there is no vocabulary {path}; run `{self._remedy}`.")
        return str(path)

    def is_ready(self) -> bool:
        """Whether the model is there."""
        return (active_data_root() / self._file).is_file()

    @property
    def _delegate(self) -> seqio.SentencePieceVocabulary | seqio.ByteVocabulary:
        return _vocabulary(self.sentencepiece_model_file)

    @property
    def bos_id(self) -> int | None:
        """None: there is no beginning of sequence."""
        return None

    @property
    def eos_id(self) -> int:
        """The end of sequence."""
        return EOS_ID

    @property
    def unk_id(self) -> int:
        """The unknown piece."""
        return UNK_ID

    @property
    def _base_vocab_size(self) -> int:
        return self._delegate.vocab_size

    def _encode(self, s: str) -> Any:
        return self._delegate.encode(s)

    def _decode(self, ids: Any) -> str:
        return self._delegate.decode(ids)

    def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
        return self._delegate.encode_tf(s)

    def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
        return self._delegate.decode_tf(ids)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PreparedVocabulary) and self._file == other._file

    def __hash__(self) -> int:
        return hash(self._file)

    def __str__(self) -> str:
        return f"PreparedVocabulary({self._file})"


def stream_output_features(
    stream: str, vocabulary: seqio.Vocabulary | None
) -> dict[str, seqio.Feature]:
    """The seqio output features of a task.

    Args:
        stream: One of `STREAM_FEATURES`.
        vocabulary: Of the texts and translations; may be None for ``speech``.

    Returns:
        audio int16 `[samples]`, text and translation int32 `[tokens]` with no end of sequence,
        language and target_language string scalars: codes, which
        a run turns into its ids.
    """
    features: dict[str, seqio.Feature] = {}
    for name in STREAM_FEATURES[stream]:
        if name == "audio":
            features[name] = seqio.ContinuousFeature(dtype=tf.int16, rank=1)
        elif name in stream_sequences(stream):
            features[name] = seqio.Feature(vocabulary, add_eos=False)
        elif not name.endswith("_length"):
            features[name] = seqio.Feature(
                seqio.PassThroughVocabulary(0), add_eos=False, dtype=tf.string, rank=0
            )
    return features


class StreamTask(seqio.Task):
    """A seqio task that says which stream and languages it is made for.

    Args:
        name: Of the task.
        stream: One of `STREAM_FEATURES`.
        languages: ISO 639-1 codes of what is spoken or written in it.
        target_language: Of its translations; empty if it has none, or does not say.
        **task_arguments: See `seqio.Task`.
    """

    def __init__(
        self,
        name: str,
        *,
        stream: str,
        languages: tuple[str, ...],
        target_language: str = "",
        **task_arguments: Any,
    ) -> None:
        super().__init__(name, **task_arguments)
        self.stream = stream
        self.languages = languages
        self.target_language = target_language


def stream_of(provider: seqio.Task | seqio.Mixture) -> str | None:
    """Returns the stream that a task or mixture is made for, by its audio and texts; or None."""
    if isinstance(provider, StreamTask):
        return provider.stream
    if isinstance(provider, seqio.Mixture):
        streams = {stream_of(task) for task in provider.tasks}
        return streams.pop() if len(streams) == 1 else None
    sequences = [name for name in SEQUENCE_LIMITS if name in provider.output_features]
    for stream in STREAM_FEATURES:
        if sequences == list(stream_sequences(stream)):
            return stream
    return None


def token_vocabulary(features: Mapping[str, seqio.Feature], owner: str) -> Vocabulary | None:
    """Returns the vocabulary of the texts and translations of a task.

    Args:
        features: The output features of a task or mixture.
        owner: Its name, for messages.

    Returns:
        The vocabulary; None if there are no tokens.

    Raises:
        UserError: Texts are tokenised neither by SentencePiece nor into bytes, or the model of the
            former is missing.
    """
    for name in ("text", "translation"):
        if name not in features:
            continue
        vocabulary = features[name].vocabulary
        if isinstance(vocabulary, seqio.ByteVocabulary):
            return ByteVocabulary()
        path = getattr(vocabulary, "sentencepiece_model_file", None)
        if path is None:
            raise UserError(
                f"feature {name!r} of {owner!r} has the vocabulary {type(vocabulary).__name__}; "
                "give it a seqio.SentencePieceVocabulary or seqio.ByteVocabulary."
            )
        return load_vocabulary(path)
    return None
