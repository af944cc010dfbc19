"""MiniVox as seqio tasks: `minivox_{config}_{stream}_{language}`, as `minivox_small_paired_de`.

Registering needs no data; `maestro prepare minivox --config small` makes them. Speech translation
reads the transcribed splits, as CoVoST-2 reads Common Voice. Mixtures `minivox_{config}_{stream}`
draw languages in proportion to their sizes; `..._upsampled` draws low-resource languages more
often, with the temperature 3 that mSLAM and USM use for text; `..._equal` draws all equally often.
"""

from __future__ import annotations

import math

from maestro_jax.batches import STREAM_FEATURES
from maestro_jax.data.indexed_source import IndexedTfdsSource
from maestro_jax.data.registration import add_language_mixture, add_stream_task
from maestro_jax.data.task_features import PreparedVocabulary
from maestro_jax.minivox.config import CorpusConfig
from maestro_jax.minivox.dataset import Minivox

UPSAMPLING_TEMPERATURE = 3.0


def stream_languages(corpus: CorpusConfig, stream: str) -> tuple[str, ...]:
    """The languages in which a corpus has training examples of a stream."""
    recorded = "paired" if stream == "st" else stream
    splits = corpus.splits()
    return tuple(
        language
        for language in corpus.languages
        # English is translated into nothing.
        if f"{recorded}_{language}_train" in splits and (stream, language) != ("st", "en")
    )


def add_minivox(config: str, corpus: CorpusConfig) -> None:
    """Registers the tasks and mixtures of a config; one's own configs can be added like this.

    Args:
        config: Its name.
        corpus: What it consists of.
    """
    remedy = f"maestro prepare minivox --config {config}"
    vocabulary = PreparedVocabulary(f"vocabularies/minivox_{config}.model", remedy)
    recorded_splits = corpus.splits()
    for stream in STREAM_FEATURES:
        recorded = "paired" if stream == "st" else stream
        names = []
        for language in stream_languages(corpus, stream):
            splits = {
                part: split
                for part in ("train", "validation", "test")
                if (split := f"{recorded}_{language}_{part}") in recorded_splits
            }
            names.append(f"minivox_{config}_{stream}_{language}")
            add_stream_task(
                names[-1],
                stream=stream,
                source=IndexedTfdsSource(f"minivox/{config}", splits, remedy),
                languages=(language,),
                vocabulary=vocabulary,
            )
        if names:
            mixture = f"minivox_{config}_{stream}"
            add_language_mixture(mixture, names)
            add_language_mixture(f"{mixture}_upsampled", names, temperature=UPSAMPLING_TEMPERATURE)
            add_language_mixture(f"{mixture}_equal", names, temperature=math.inf)


for _config in Minivox.BUILDER_CONFIGS:
    add_minivox(_config.name, _config.corpus)
