"""Babel as seqio tasks: `babel_{stream}_{language}`, as `babel_paired_lt`.

Streams are `paired` and `speech`, the same recordings without their transcripts. The split
`limited` of a task holds the ten hours of the limited language pack. The mixtures `babel_{stream}`
and `babel_{stream}_upsampled` take all languages; one of the packs at hand is a line of one's own.
"""

from __future__ import annotations

from maestro_jax.data.corpora.babel import LANGUAGE_CODES
from maestro_jax.tasks.corpus_tasks import SPLITS, add_corpus_mixtures, add_corpus_task

BABEL_LANGUAGES = tuple(LANGUAGE_CODES.values())

for _stream in ("paired", "speech"):
    for _language in BABEL_LANGUAGES:
        add_corpus_task(
            "babel",
            _language,
            stream=_stream,
            language=_language,
            splits={split: split for split in SPLITS} | {"limited": "sub_train"},
        )
    add_corpus_mixtures(
        f"babel_{_stream}", [f"babel_{_stream}_{language}" for language in BABEL_LANGUAGES]
    )
