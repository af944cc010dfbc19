"""VoxPopuli as seqio tasks, which `maestro prepare` makes data for.

| task | stream | of | corpus |
|---|---|---|---|
| `voxpopuli_paired_de` | paired | a language or `en_accented` | `voxpopuli` |
| `voxpopuli_unlabelled_speech_100k_de` | speech | a subset and language | `voxpopuli_unlabelled` |
| `voxpopuli_text_de` | text | a language | `voxpopuli_text` |

`voxpopuli_paired` and `voxpopuli_text` mix 16 languages, `..._14` those of the papers, which leave
Estonian and Lithuanian out; `voxpopuli_unlabelled_speech_{subset}` mixes 23. Each draws languages
in proportion to their sizes, and has an `..._upsampled` that draws small ones more often.
"""

from __future__ import annotations

from maestro_jax.data.corpora.voxpopuli import ACCENTED, LANGUAGES, PAPERS
from maestro_jax.data.corpora.voxpopuli_unlabelled import LANGUAGES as UNLABELLED_LANGUAGES
from maestro_jax.data.corpora.voxpopuli_unlabelled import SPEAKERS, SUBSETS
from maestro_jax.tasks.corpus_tasks import add_corpus_mixtures, add_corpus_task

for _language in LANGUAGES:
    add_corpus_task("voxpopuli", _language, stream="paired", language=_language)
    add_corpus_task(
        "voxpopuli_text",
        _language,
        stream="text",
        language=_language,
        splits=("train",),
        name=f"voxpopuli_text_{_language}",
    )
for _config, _language in ACCENTED.items():
    add_corpus_task(
        "voxpopuli",
        _config,
        stream="paired",
        language=_language,
        splits=("test",),
        wanted=_config,
    )
for _stem in ("voxpopuli_paired", "voxpopuli_text"):
    add_corpus_mixtures(_stem, [f"{_stem}_{language}" for language in LANGUAGES])
    add_corpus_mixtures(f"{_stem}_14", [f"{_stem}_{language}" for language in PAPERS])

for _subset in (*SUBSETS, SPEAKERS):
    _tasks = [
        add_corpus_task(
            "voxpopuli_unlabelled",
            f"{_subset}_{language}",
            stream="speech",
            language=language,
            splits=("train",),
            wanted=f"{_subset}_{language}",
        ).name
        for language in UNLABELLED_LANGUAGES
    ]
    add_corpus_mixtures(f"voxpopuli_unlabelled_speech_{_subset}", _tasks)
