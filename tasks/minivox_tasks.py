"""MiniVox as seqio tasks: `minivox_{config}_{stream}_{language}`, such as `minivox_small_paired_de`.

Registering needs no data; `maestro prepare minivox --config small` makes them. Speech translation reads
the transcribed splits, as CoVoST-2 reads Common Voice.
"""

from __future__ import annotations

from maestro_jax.data.indexed_source import IndexedTfdsSource
from maestro_jax.data.registration import add_stream_task
from maestro_jax.data.streams import STREAM_FEATURES
from maestro_jax.data.synthesis import config as corpus_config
from maestro_jax.data.task_features import PreparedVocabulary

CONFIG_LANGUAGES: dict[str, tuple[str, ...]] = {
    "small": tuple(corpus_config.SMALL.languages),
    "full": tuple(corpus_config.full().languages),
}
"""The languages of each config."""


def stream_languages(config: str, stream: str) -> tuple[str, ...]:
    """The languages of a config that have a stream: English is translated into nothing."""
    languages = CONFIG_LANGUAGES[config]
    if stream in ("mt", "st"):
        return tuple(language for language in languages if language != "en")
    return languages


def task_names(config: str, stream: str) -> list[str]:
    """The names of a stream's tasks, one a language."""
    return [
        f"minivox_{config}_{stream}_{language}" for language in stream_languages(config, stream)
    ]


def add_minivox_tasks(config: str) -> None:
    """Registers the tasks of all streams of a config."""
    remedy = f"maestro prepare minivox --config {config}"
    vocabulary = PreparedVocabulary(f"vocabularies/minivox_{config}.model", remedy)
    for stream in STREAM_FEATURES:
        recorded = "paired" if stream == "st" else stream
        parts = ("train", "validation", "test") if recorded == "paired" else ("train",)
        for language in stream_languages(config, stream):
            splits = {part: f"{recorded}_{language}_{part}" for part in parts}
            add_stream_task(
                f"minivox_{config}_{stream}_{language}",
                stream=stream,
                source=IndexedTfdsSource(f"minivox/{config}", splits, remedy),
                languages=(language,),
                vocabulary=vocabulary,
            )


for _config in CONFIG_LANGUAGES:
    add_minivox_tasks(_config)
