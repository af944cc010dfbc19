"""Importing this module registers the tasks and mixtures of every corpus here.

Mixtures over the languages of one corpus stand beside its tasks; mixtures over several corpora
belong here: those of the paper, `maestro_{experiment}_{stream}`, each with an `..._upsampled` that
draws small tasks more often. All tasks of a mixture must be of one stream and share one vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

from maestro_jax.data.corpora.mls import LANGUAGES as MLS
from maestro_jax.data.corpora.voxpopuli import AVERAGED_LANGUAGES, UNLABELLED_LANGUAGES
from maestro_jax.tasks import minivox_tasks, quickstart_tasks, speech_tasks, text_tasks
from maestro_jax.tasks.corpus_tasks import add_corpus_mixtures
from maestro_jax.text.languages import LANGUAGES

__all__ = ["minivox_tasks", "quickstart_tasks", "speech_tasks", "text_tasks"]

# The 17 languages of Babel that XLSR-53 and those after it pretrain on.
BABEL = (
    "as", "bn", "ceb", "ht", "ka", "kk", "ku", "lo", "ps", "sw", "ta", "tl", "tpi", "tr", "vi",
    "yue", "zu",
)  # fmt: skip

MC4 = tuple(code for code in LANGUAGES if code not in ("hr", "as", "gn", "luo", "tpi", "yue"))
"""The languages of mC4 among those that models can be told."""


def _tasks(stem: str, configs: Sequence[str], ending: str = "") -> list[str]:
    return [f"{stem}_{config}{ending}" for config in configs]


def add_paper_mixtures() -> None:
    """Registers the mixtures of the paper's three experiments."""
    # English: Libri-Light, SpeechStew, and the text of LibriSpeech's and TED-LIUM's models.
    text_tasks.add_texts("tedlium_lm", ("en",))
    free = ["librispeech_paired_en", *_tasks("common_voice_paired", ("en",))]
    free += _tasks("tedlium_paired", ("en",))
    stew = free + [
        f"{corpus}_paired_en" for corpus in speech_tasks.SPEECHSTEW if corpus != "tedlium"
    ]
    sizes = _tasks("libri_light_speech", ("small", "medium", "large"))
    add_corpus_mixtures("maestro_speechstew_speech", sizes)
    add_corpus_mixtures("maestro_speechstew_paired", stew)
    add_corpus_mixtures("maestro_speechstew_paired_free", free)
    add_corpus_mixtures("maestro_speechstew_text", ["librispeech_text_en", "tedlium_lm_text_en"])

    # Many languages: 429 thousand hours of speech, 1.3 or 2.4 thousand of pairs, VP-T and mC4.
    mls = tuple(MLS.values())
    speech = [
        *_tasks("voxpopuli_unlabelled_speech_400k", UNLABELLED_LANGUAGES),
        *_tasks("common_voice_speech", speech_tasks.COMMON_VOICE_MIXED),
        *_tasks("mls_speech", mls),
        *_tasks("babel_speech", BABEL),
    ]
    pairs = _tasks("voxpopuli_paired", AVERAGED_LANGUAGES)
    more_pairs = [*pairs, *_tasks("mls_paired", mls, "_10h"), *_tasks("babel_paired", BABEL)]
    vp_t = _tasks("voxpopuli_text", AVERAGED_LANGUAGES)
    mc4 = _tasks("text_files_text", MC4)
    add_corpus_mixtures("maestro_voxpopuli_speech", speech)
    add_corpus_mixtures("maestro_voxpopuli_paired", pairs)
    add_corpus_mixtures("maestro_voxpopuli_text", vp_t)
    add_corpus_mixtures("maestro_voxpopuli_mc4_paired", more_pairs)
    add_corpus_mixtures("maestro_voxpopuli_mc4_text", [*vp_t, *mc4])

    # Translation into English: CoVoST-2, and the texts of WMT and TED.
    into = speech_tasks.COVOST2_INTO_ENGLISH
    parallel = [f"{language}_en" for language in text_tasks.TRANSLATED]
    add_corpus_mixtures("maestro_covost2_speech", speech)
    add_corpus_mixtures("maestro_covost2_paired", [*more_pairs, *_tasks("covost2_paired", into)])
    add_corpus_mixtures("maestro_covost2_text", mc4)
    add_corpus_mixtures(
        "maestro_covost2_mt", [*_tasks("covost2_mt", into), *_tasks("parallel_text_mt", parallel)]
    )
    add_corpus_mixtures("maestro_covost2_st", _tasks("covost2_st", into))


add_paper_mixtures()
