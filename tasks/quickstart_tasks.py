"""The seqio tasks of `maestro quickstart`: `quickstart_paired_ml`, `quickstart_st_ar_en`, ...

The command divides a directory of recordings into data sets of these names: `quickstart` has what
is transcribed (`ml`) or translated (`ar_en`), `unpaired` has untranscribed speech and unspoken
text, each as a split. Any language can be one, so the tasks are registered when they are asked for.
"""

from __future__ import annotations

from maestro_jax.data.stream_tasks import PreparedVocabulary
from maestro_jax.data.task_registry import TaskFamily, add_task_family
from maestro_jax.errors import UserError
from maestro_jax.tasks.corpus_tasks import add_corpus_task
from maestro_jax.text.languages import config_language

VOCABULARY = PreparedVocabulary("vocabularies/quickstart.model", "maestro quickstart DIR")


def _add_paired(config: str) -> None:
    """Registers the tasks of a language, or of a pair of languages such as `ar_en`."""
    language, _, target = config.partition("_to_")
    if target:
        for stream in ("st", "mt"):
            add_corpus_task(
                "quickstart",
                config,
                stream=stream,
                language=config_language(language),
                target_language=config_language(target),
                vocabulary=VOCABULARY,
            )
        return
    for stream in ("paired", "speech", "text"):
        add_corpus_task(
            "quickstart",
            config,
            stream=stream,
            language=config_language(config),
            vocabulary=VOCABULARY,
        )


def _add_unpaired(config: str) -> None:
    """Registers the tasks of the unpaired data of a language."""
    if "_to_" in config:
        raise UserError(f"{config!r} is not a language.")
    for stream in ("speech", "text"):
        add_corpus_task(
            "unpaired",
            config,
            stream=stream,
            language=config_language(config),
            splits={"train": stream},
            vocabulary=VOCABULARY,
        )


add_task_family(TaskFamily("quickstart", ("paired", "speech", "text", "st", "mt"), _add_paired))
add_task_family(TaskFamily("unpaired", ("speech", "text"), _add_unpaired))
