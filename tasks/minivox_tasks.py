"""The seqio tasks of MiniVox: `minivox_{config}_{stream}_{language}`, as `minivox_small_paired_de`.

`maestro prepare minivox --config small` makes their data. Speech translation reads the transcribed
splits, as CoVoST-2 reads Common Voice. `minivox_study_phonemes_paired_de` and the like have
phonemes for texts, with a vocabulary of their own. The mixtures `minivox_{config}_{stream}` draw
languages in proportion to their sizes, `..._upsampled` draws small ones more often, and
`..._equal` draws all equally often.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from maestro_jax.batches import STREAM_FEATURES
from maestro_jax.data.indexed_source import IndexedTfdsSource
from maestro_jax.data.stream_tasks import (
    PreparedVocabulary,
    add_stream_task,
    stream_preprocessors,
)
from maestro_jax.minivox.config import CorpusConfig
from maestro_jax.minivox.dataset import Minivox
from maestro_jax.tasks.corpus_tasks import add_corpus_mixtures


def stream_languages(corpus: CorpusConfig, stream: str) -> tuple[str, ...]:
    """Returns the languages in which a corpus has training examples of a stream."""
    recorded = "paired" if stream == "st" else stream
    splits = corpus.splits()
    return tuple(
        language
        for language in corpus.languages
        # English is translated into nothing.
        if f"{recorded}_{language}_train" in splits and (stream, language) != ("st", "en")
    )


def add_minivox(config: str, corpus: CorpusConfig, *, vocabulary_of: str | None = None) -> None:
    """Registers the tasks and mixtures of a config of MiniVox, shipped or of one's own.

    Args:
        config: Name of the config.
        corpus: Sizes of its splits.
        vocabulary_of: Name of the config whose vocabulary is used; by default its own.
    """
    _add_streams(config, corpus, config, vocabulary_of or config, STREAM_FEATURES)
    if corpus.phonemes:
        name = f"{config}_phonemes"
        _add_streams(config, corpus, name, name, ("paired", "text"), phonemes=True)


def _add_streams(
    config: str,
    corpus: CorpusConfig,
    name: str,
    vocabulary_name: str,
    streams: Iterable[str],
    *,
    phonemes: bool = False,
) -> None:
    """Registers the tasks `minivox_{name}_{stream}_{language}` and their mixtures."""
    remedy = f"maestro prepare minivox --config {config}"
    vocabulary = PreparedVocabulary(
        f"vocabularies/minivox_{vocabulary_name}.model",
        remedy if phonemes else f"maestro prepare minivox --config {vocabulary_name}",
    )
    recorded_splits = corpus.splits()
    for stream in streams:
        recorded = "paired" if stream == "st" else stream
        names = []
        for language in stream_languages(corpus, stream):
            splits = {
                part: split
                for part in ("train", "validation", "test")
                if (split := f"{recorded}_{language}_{part}") in recorded_splits
            }
            names.append(f"minivox_{name}_{stream}_{language}")
            add_stream_task(
                names[-1],
                stream=stream,
                source=IndexedTfdsSource(f"minivox/{config}", splits, remedy),
                languages=(language,),
                vocabulary=vocabulary,
                preprocessors=stream_preprocessors(stream, phonemes=phonemes),
            )
        if names:
            add_corpus_mixtures(
                f"minivox_{name}_{stream}",
                names,
                temperatures={"upsampled": 3.0, "equal": math.inf},
            )


for _config in Minivox.BUILDER_CONFIGS:
    # Both domains of the adaptation experiment are written with one vocabulary.
    add_minivox(
        _config.name,
        _config.corpus,
        vocabulary_of="everyday" if _config.name == "calendar" else None,
    )
