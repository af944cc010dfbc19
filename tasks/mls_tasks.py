"""MLS as seqio tasks: `mls_{stream}_{language}`, streams `paired`, `speech` and `text`.

Paired tasks of less speech are `mls_paired_{language}_{subset}` with the subsets `10min`, `1h`,
`9h` and `10h`; `text` reads the text of the language models. The mixtures `mls_{stream}` and
`mls_paired_{subset}` draw languages in proportion to their sizes, `..._upsampled` draws small ones
more often: nine tenths of all hours are English.
"""

from __future__ import annotations

from maestro_jax.data.corpora.limited import SUBSETS
from maestro_jax.data.corpora.mls import LANGUAGES
from maestro_jax.tasks.corpus_tasks import add_corpus_mixtures, add_corpus_task

_EVALUATED = {"validation": "validation", "test": "test"}
_LANGUAGES = tuple(LANGUAGES.values())

for _stream in ("paired", "speech"):
    for _language in _LANGUAGES:
        add_corpus_task("mls", _language, stream=_stream, language=_language)
    add_corpus_mixtures(f"mls_{_stream}", [f"mls_{_stream}_{code}" for code in _LANGUAGES])

for _language in _LANGUAGES:
    add_corpus_task(
        "mls_text",
        _language,
        stream="text",
        language=_language,
        splits=("train",),
        name=f"mls_text_{_language}",
    )
add_corpus_mixtures("mls_text", [f"mls_text_{code}" for code in _LANGUAGES])

for _subset, _splits in SUBSETS.items():
    for _language in _LANGUAGES:
        add_corpus_task(
            "mls",
            _language,
            stream="paired",
            language=_language,
            splits={"train": _splits, **_EVALUATED},
            name=f"mls_paired_{_language}_{_subset}",
        )
    add_corpus_mixtures(
        f"mls_paired_{_subset}", [f"mls_paired_{code}_{_subset}" for code in _LANGUAGES]
    )
