"""Common Voice as seqio tasks: `common_voice_paired_de`, `common_voice_speech_de`.

`common_voice_text_de` has the sentences alone. Chinese as Taiwan and Hong Kong write it has tasks
of its own, `common_voice_paired_zh_tw`. `common_voice_paired_de_validated` reads the validated
clips outside of the three splits, `common_voice_speech_de_other` those that nobody has validated:
both only train, and are prepared when they are named (`--languages de_other`).

The mixture `common_voice_paired`, and that of `speech`, is over the languages of CoVoST-2; one over
others takes a line of one's own (see `add_corpus_mixtures`).
"""

from __future__ import annotations

from maestro_jax.data.corpora.covost2_sizes import INTO_ENGLISH
from maestro_jax.tasks.corpus_tasks import add_corpus_mixtures, add_corpus_task
from maestro_jax.text.languages import LANGUAGES

NAME = "common_voice"
REGIONS = ("zh_tw", "zh_hk")
"""Further forms of languages that have directories of their own."""

MIXED = ("en", *INTO_ENGLISH)
"""The languages of the mixtures."""


def add_common_voice() -> None:
    """Registers the tasks and mixtures."""
    for config in (*LANGUAGES, *REGIONS):
        language = config.split("_")[0]
        for stream in ("paired", "speech", "text"):
            add_corpus_task(NAME, config, stream=stream, language=language, wanted=config)
        for table, stream in (("validated", "paired"), ("other", "speech")):
            name = f"{config}_{table}"
            add_corpus_task(
                NAME, name, stream=stream, language=language, splits=("train",), wanted=name
            )
    for stream in ("paired", "speech"):
        add_corpus_mixtures(f"{NAME}_{stream}", [f"{NAME}_{stream}_{code}" for code in MIXED])


add_common_voice()
