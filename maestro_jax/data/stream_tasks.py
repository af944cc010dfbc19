"""seqio tasks of the streams: their vocabulary, features, preprocessors and registration.

A task gives what one stream of a batch needs. `add_stream_task` registers one over prepared records
(audio, text, translation, language and so on); a task that is written in plain seqio will do as
well, if its output features have the streams' names and types.
"""

from __future__ import annotations

import atexit
import contextlib
import contextvars
import functools
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from maestro_jax.batches import SEQUENCE_LIMITS, STREAM_FEATURES, stream_sequences
from maestro_jax.data.data_dir import active_data_root
from maestro_jax.errors import UserError
from maestro_jax.files import as_path
from maestro_jax.text.languages import LANGUAGES, LanguageTable, normalize_language
from maestro_jax.text.vocabularies import (
    BYTE_MODEL,
    EOS_ID,
    MODEL_FILE,
    UNK_ID,
    ByteVocabulary,
    Vocabulary,
    load_vocabulary,
)

Preprocessor = Callable[..., tf.data.Dataset]
"""Function from the examples of a task to other examples; see seqio."""

UNDETERMINED = "und"
"""The code of ISO 639-2 for a language that is not known."""


@functools.lru_cache(maxsize=8)
def _vocabulary(path: str) -> seqio.SentencePieceVocabulary | seqio.ByteVocabulary:
    if as_path(path).read_bytes() == BYTE_MODEL:
        return seqio.ByteVocabulary()
    return seqio.SentencePieceVocabulary(path)


_replacement: contextvars.ContextVar[str | None] = contextvars.ContextVar(
    "vocabulary_scope", default=None
)


@contextlib.contextmanager
def vocabulary_scope(vocabulary: Vocabulary | None) -> Iterator[None]:
    """Makes tasks that are opened inside the block write the tokens of a model's own vocabulary.

    A model has its vocabulary beside its checkpoints, so that it can be evaluated on data whose
    vocabulary is another one, or is not there.

    Args:
        vocabulary: The vocabulary of the model; None for those that were prepared with the data.
    """
    if vocabulary is None:
        yield
        return
    # seqio opens files only. This one may be opened until the last dataset is read, so it stays
    # until the process ends.
    token = _replacement.set(_vocabulary_file(vocabulary.model_bytes))
    try:
        yield
    finally:
        _replacement.reset(token)


@functools.lru_cache(maxsize=8)
def _vocabulary_file(content: bytes) -> str:
    directory = tempfile.TemporaryDirectory(prefix="maestro_jax_vocabulary_")
    atexit.register(directory.cleanup)
    path = Path(directory.name) / MODEL_FILE
    path.write_bytes(content)
    return str(path)


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
        """Returns the path of the model below the data root."""
        return self._file

    @property
    def remedy(self) -> str:
        """The command that makes the vocabulary."""
        return self._remedy

    @property
    def sentencepiece_model_file(self) -> str:
        """Returns the path of the model, or of the file that says that tokens are bytes.

        Raises:
            UserError: It is not there.
        """
        if (replacement := _replacement.get()) is not None:
            return replacement
        path = active_data_root() / self._file
        if not path.is_file():
            raise UserError(f"there is no vocabulary {path}; run `{self._remedy}`.")
        return str(path)

    def is_ready(self) -> bool:
        """Returns whether the model file exists."""
        return (active_data_root() / self._file).is_file()

    @property
    def _delegate(self) -> seqio.SentencePieceVocabulary | seqio.ByteVocabulary:
        return _vocabulary(self.sentencepiece_model_file)

    @property
    def bos_id(self) -> int | None:
        """Returns None: there is no beginning of sequence."""
        return None

    @property
    def eos_id(self) -> int:
        """Returns the id of the end of sequence."""
        return EOS_ID

    @property
    def unk_id(self) -> int:
        """Returns the id of the unknown piece."""
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
    """Returns the seqio output features of a task.

    Args:
        stream: One of `STREAM_FEATURES`.
        vocabulary: Vocabulary of texts and translations; may be None for ``speech``.

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
        name: Name of the task.
        stream: One of `STREAM_FEATURES`.
        languages: ISO 639-1 codes of what is spoken or written in it.
        target_language: Language of its translations; empty if it has none or it is unknown.
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


def language_of(
    task: seqio.Task, example: Mapping[str, Any], languages: LanguageTable | None = None
) -> str:
    """Returns the language of an example.

    Args:
        task: Its task.
        example: Its features, as NumPy arrays.
        languages: Ids of languages; by default those of `LANGUAGES`.

    Returns:
        The string that the example has, else the code of its language id, else what the task was
        registered with, else the end of the task's name, if that is a code; else an empty string.
    """
    code = _code(task, example, "language", languages or LanguageTable())
    if not code and isinstance(task, StreamTask) and len(task.languages) == 1:
        [code] = task.languages
    if not code and (suffix := task.name.rsplit("_", 1)[-1]) in LANGUAGES:
        code = suffix
    return code


def target_language_of(
    task: seqio.Task, example: Mapping[str, Any], languages: LanguageTable | None = None
) -> str:
    """Returns the language that an example is translated into; see `language_of`."""
    code = _code(task, example, "target_language", languages or LanguageTable())
    return code or (task.target_language if isinstance(task, StreamTask) else "")


def _code(task: seqio.Task, example: Mapping[str, Any], name: str, languages: LanguageTable) -> str:
    """Returns a code; empty if there is none, or a negative id, which is unknown."""
    identity = example.get(name)
    if identity is None or isinstance(identity, bytes):
        return (identity or b"").decode()
    if np.ndim(identity):
        raise UserError(
            f"{name} is {np.asarray(identity).tolist()} in an example of task {task.name!r}; "
            "it is the code of one language as a string, or its id."
        )
    if int(identity) >= len(languages):
        raise UserError(
            f"{name} is {int(identity)} in an example of task {task.name!r}; ids of languages are "
            f"below {len(languages)}. Give the language's code as a string instead."
        )
    return languages.code(int(identity))


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
        from maestro_jax.espeak import phonemes

        return phonemes([text.decode()], language.decode())[0].encode()

    def preprocess(dataset: tf.data.Dataset) -> tf.data.Dataset:
        def replace(example: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            arguments = [example["text"], example["language"]]
            text = tf.numpy_function(convert, arguments, tf.string, stateful=False)
            return {**example, "text": tf.ensure_shape(text, [])}

        return dataset.map(replace)

    preprocess.writes_phonemes = True  # type: ignore[attr-defined]
    return preprocess


def has_phonemes(task: seqio.Task) -> bool:
    """Returns whether the texts of a task are converted by `pronounced`."""
    return any(getattr(step, "writes_phonemes", False) for step in task.preprocessors)


def stream_preprocessors(
    stream: str, target_language: str = "en", *, phonemes: bool = False
) -> list[Preprocessor]:
    """Returns the preprocessors from a record (audio, text, translation, language) to a stream.

    Args:
        stream: One of `maestro_jax.batches.STREAM_FEATURES`.
        target_language: Code of the language of the translations of ``mt`` and ``st``.
        phonemes: Whether texts are converted to phonemes; see `pronounced`.

    Returns:
        Preprocessors of a seqio task; tokenised strings stay as ``*_pretokenized``.
    """
    steps: list[Preprocessor] = []
    if stream in ("mt", "st"):
        steps.append(add_target_language(target_language))
    if phonemes and "text" in STREAM_FEATURES[stream]:
        steps.append(pronounced())
    if stream != "speech":
        steps.append(tokenize)
    return steps


def tokenize(
    dataset: tf.data.Dataset, output_features: Mapping[str, seqio.Feature]
) -> tf.data.Dataset:
    """Encodes texts as `seqio.preprocessors.tokenize` does.

    AutoGraph is off: it would take several times as long as opening the data set, to find nothing
    that has to be converted.
    """
    return _tokenize(dataset, output_features)


@tf.autograph.experimental.do_not_convert
def _tokenize(
    dataset: tf.data.Dataset, output_features: Mapping[str, seqio.Feature]
) -> tf.data.Dataset:
    return seqio.preprocessors.tokenize(dataset, output_features)


def add_stream_task(
    name: str,
    *,
    stream: str,
    source: seqio.DataSource,
    languages: Sequence[str],
    target_language: str = "",
    vocabulary: seqio.Vocabulary | None = None,
    preprocessors: Sequence[Preprocessor] | None = None,
    metric_fns: Sequence[Callable[..., Mapping[str, Any]]] = (),
    postprocess_fn: Callable[..., Any] | None = None,
) -> StreamTask:
    """Registers a task of a stream; a task of that name is replaced, so modules can be reloaded.

    Args:
        name: Name of the task.
        stream: One of `maestro_jax.batches.STREAM_FEATURES`.
        source: Source of records with the strings id, text, raw_text, translation, language,
            speaker and int16 16 kHz audio, as far as the preprocessors need them.
        languages: ISO 639-1 codes of what is spoken or written.
        target_language: Language of the translations, which the preprocessors set; to find the
            task's row in a table of scores.
        vocabulary: Vocabulary of texts and translations; not needed for ``speech``.
        preprocessors: One-to-one steps to the stream's features; by default those of
            `stream_preprocessors`.
        metric_fns: Functions of targets and predictions, called beside the usual scores; see
            `maestro_jax.data.test_sets`.
        postprocess_fn: Function from references and hypotheses to targets and predictions.

    Returns:
        The task.
    """
    if name in seqio.TaskRegistry.names():
        seqio.TaskRegistry.remove(name)
    return seqio.TaskRegistry.add(
        name,
        task_cls=StreamTask,
        stream=stream,
        languages=tuple(languages),
        target_language=target_language,
        source=source,
        preprocessors=stream_preprocessors(stream) if preprocessors is None else preprocessors,
        output_features=stream_output_features(stream, vocabulary),
        metric_fns=list(metric_fns),
        postprocess_fn=postprocess_fn,
        # Sources with random access shuffle all their examples; a buffer of audio adds nothing.
        shuffle_buffer_size=None if source.performs_internal_shuffling else 1000,
    )
