"""Registers tasks of prepared corpora, such as `voxpopuli_paired_de`, and mixtures of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import seqio

from maestro_jax.data.corpora.corpus import corpus_names
from maestro_jax.data.indexed_source import IndexedTfdsSource
from maestro_jax.data.stream_tasks import (
    PreparedVocabulary,
    StreamTask,
    add_stream_task,
    stream_preprocessors,
)
from maestro_jax.data.task_registry import add_language_mixture

VOCABULARY = PreparedVocabulary(
    "vocabularies/multilingual.model", "maestro vocabulary multilingual --kind char"
)
"""The vocabulary of all corpora, since all streams of a run share one: letters, as in the paper's
runs. The command trains it on all prepared tasks that use it, unless it is told which."""

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
    requested: str | None = None,
    layout: str = "manifest",
    phonemes: bool = False,
) -> StreamTask:
    """Registers a task that reads a prepared corpus; nothing is read before it is used.

    Args:
        corpus: Name under which the corpus is prepared.
        config: Config of the corpus, usually a language.
        stream: One of `maestro_jax.batches.STREAM_FEATURES`.
        language: ISO 639-1 code of the spoken or written language.
        target_language: Language of the translations.
        splits: Splits of the data set, or a mapping to them from the names that the task gives
            them, such as `{"train": "train_clean_100+train_clean_360"}`.
        vocabulary: Vocabulary of texts and translations.
        name: Name of the task; by default `{corpus}_{stream}_{config}`.
        requested: What `maestro prepare --languages` takes for the config; by default `language`.
        layout: What `maestro prepare` takes to read a corpus without a reader of its own:
            `manifest`, `text_files` or `parallel_text`.
        phonemes: Whether texts are converted to phonemes, which needs a vocabulary of phonemes; see
            `maestro_jax.data.stream_tasks.pronounced`.

    Returns:
        The task.
    """
    names = dict(splits) if isinstance(splits, Mapping) else {split: split for split in splits}
    reader = corpus if corpus in corpus_names() else f"{layout} --name {corpus}"
    remedy = f"maestro prepare {reader} --source_dir DIR --languages {requested or language}"
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
    """Registers a mixture in proportion to the sizes, and others that upsample small tasks.

    Args:
        name: Name of the mixture.
        tasks: Names of its tasks, all of one stream.
        temperatures: Sampling temperature of each further mixture, by the suffix of its name. The
            default is `upsampled` with 3, the temperature of mSLAM and USM for text.
    """
    add_language_mixture(name, tasks)
    for suffix, temperature in (temperatures or {"upsampled": 3.0}).items():
        add_language_mixture(f"{name}_{suffix}", tasks, temperature=temperature)
