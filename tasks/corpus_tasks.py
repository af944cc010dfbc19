"""Tasks of a prepared corpus, `{corpus}_{stream}_{config}` as `voxpopuli_paired_de`; mixtures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import seqio

from maestro_jax.data.corpora.corpus import corpus_names
from maestro_jax.data.indexed_source import IndexedTfdsSource
from maestro_jax.data.preprocessors import stream_preprocessors
from maestro_jax.data.registration import add_language_mixture, add_stream_task
from maestro_jax.data.task_features import PreparedVocabulary, StreamTask

VOCABULARY = PreparedVocabulary(
    "vocabularies/multilingual.model", "maestro vocabulary multilingual --kind char"
)
"""What all corpora share, since all streams of a run share it: letters, as in the paper's runs.
Without naming tasks, the command trains it on all prepared ones that read it."""

SPLITS = ("train", "validation", "test")


def add_corpus_task(
    corpus: str,
    config: str,
    *,
    stream: str,
    language: str,
    target_language: str = "en",
    splits: Sequence[str] | Mapping[str, str] = SPLITS,
    vocabulary: seqio.Vocabulary = VOCABULARY,
    name: str | None = None,
    wanted: str | None = None,
    layout: str = "manifest",
    phonemes: bool = False,
) -> StreamTask:
    """Registers a task that reads what `maestro prepare` made of a corpus.

    Args:
        corpus: The name under which it was prepared.
        config: Its config, usually a language.
        stream: One of `maestro_jax.batches.STREAM_FEATURES`.
        language: ISO 639-1 code of what is spoken or written.
        target_language: Of the translations.
        splits: Those of the data set; or the task's names for them, `{"train": "train_clean"}`.
        vocabulary: Of texts and translations.
        name: Of the task; by default `{corpus}_{stream}_{config}`.
        wanted: What `maestro prepare --languages` takes to make the config; by default `language`.
        layout: What `maestro prepare` takes for a corpus that it knows no reader of, and that was
            given its name: `manifest`, `text_files` or `parallel_text`.
        phonemes: Whether texts are read as they are pronounced, which takes a vocabulary of
            phonemes; see `maestro_jax.data.preprocessors.pronounced`.

    Returns:
        The task. Nothing is read before it is used.
    """
    names = dict(splits) if isinstance(splits, Mapping) else {split: split for split in splits}
    read = corpus if corpus in corpus_names() else f"{layout} --name {corpus}"
    remedy = f"maestro prepare {read} --source_dir DIR --languages {wanted or language}"
    return add_stream_task(
        name or f"{corpus}_{stream}_{config}",
        stream=stream,
        source=IndexedTfdsSource(
            f"{corpus}/{config}", names, remedy, texts=stream in ("text", "mt")
        ),
        languages=(language,),
        target_language=target_language if stream in ("mt", "st") else "",
        vocabulary=None if stream == "speech" else vocabulary,
        preprocessors=stream_preprocessors(stream, target_language, phonemes=phonemes),
    )


def add_corpus_mixtures(
    name: str, tasks: Sequence[str], *, temperatures: Mapping[str, float] | None = None
) -> None:
    """Registers a mixture in proportion to the sizes, and others that draw small tasks more often.

    Args:
        name: Of the mixture.
        tasks: Its tasks, of one stream.
        temperatures: By the ending of the mixture's name; by default `upsampled` with 3, as mSLAM
            and USM use for text.
    """
    add_language_mixture(name, tasks)
    for ending, temperature in (temperatures or {"upsampled": 3.0}).items():
        add_language_mixture(f"{name}_{ending}", tasks, temperature=temperature)
