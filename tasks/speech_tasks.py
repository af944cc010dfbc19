"""The seqio tasks of speech corpora, and the mixtures over the languages of each corpus.

A task is named `{corpus}_{stream}_{config}`, such as `voxpopuli_paired_de`, unless the table has
another name. All streams have tasks for all languages of the corpus.

| corpus | streams | further tasks |
|---|---|---|
| LibriSpeech | `paired`, `speech`, `text` | `librispeech_paired_en_{other,clean100,clean460}` |
| Libri-Light | `speech` of `small`, `medium`, `large` | `..._paired_limited_{10min,1h,9h,10h}` |
| SpeechStew's `tedlium`, `ami`, ... | `paired` | `..._en_distant` of AMI, `..._en_callhome` |
| VoxPopuli | `paired` | `voxpopuli_paired_en_accented` |
| VoxPopuli, unlabelled | `voxpopuli_unlabelled_speech_{10k,10k_sd,100k,400k}_de` | |
| VoxPopuli, text | `voxpopuli_text_de` | |
| MLS | `paired`, `speech`, `text` | `mls_paired_de_{10min,1h,9h,10h}` |
| Common Voice | `paired`, `speech`, `text` | `..._paired_de_validated`, `..._speech_de_other` |
| CoVoST-2 | `st`, `mt`, `paired` of directions such as `de_en` | |
| FLEURS | `paired` | |
| Babel | `paired`, `speech` | the split `limited` of each task |
| `recordings`: manifests of your own | `paired`, `speech`, `text`, `st` | |

A mixture has the name of its tasks without the language (`mls_paired_10h`). It draws languages in
proportion to their sizes; `..._upsampled` draws small ones more often.
"""

from __future__ import annotations

import math

from maestro_jax.data.corpora import babel, covost2, libri_light, mls, voxpopuli
from maestro_jax.data.task_registry import TaskFamily, add_language_mixture, add_task_family
from maestro_jax.tasks.corpus_tasks import SPLITS, add_corpus_mixtures, add_corpus_task
from maestro_jax.text.languages import LANGUAGES, base_language, config_language

TRAIN = ("train",)
RECORDINGS_STREAMS = ("speech", "paired", "text", "st")


def add_librispeech() -> None:
    """Registers LibriSpeech: 960, 460 or 100 hours, evaluated on the clean or other sets."""
    clean = {"validation": "dev_clean", "test": "test_clean"}
    other = {"validation": "dev_other", "test": "test_other"}
    clean_460 = "train_clean_100+train_clean_360"
    all_960 = f"{clean_460}+train_other_500"
    splits = {
        "": {"train": all_960, **clean},
        "_other": {"train": all_960, **other},
        "_clean100": {"train": "train_clean_100", **clean},
        "_clean460": {"train": clean_460, **clean},
    }
    for suffix, names in splits.items():
        name = f"librispeech_paired_en{suffix}"
        add_corpus_task(
            "librispeech", "en", stream="paired", language="en", splits=names, name=name
        )
    add_corpus_task("librispeech", "en", stream="speech", language="en", splits=splits[""])
    _add_text("librispeech_text", ("en",))


def add_libri_light() -> None:
    """Registers Libri-Light; its transcribed subsets have no validation or test split."""
    names = [
        add_corpus_task(
            "libri_light", size, stream="speech", language="en", splits=TRAIN, requested=size
        ).name
        for size in libri_light.SIZES
    ]
    add_language_mixture("libri_light_speech", names)
    add_language_mixture("libri_light_speech_6k", names[:2])
    for subset, splits in libri_light.LIMITED_SUBSETS.items():
        add_corpus_task(
            "libri_light",
            libri_light.LIMITED,
            stream="paired",
            language="en",
            splits={"train": splits},
            name=f"libri_light_paired_limited_{subset}",
            requested=libri_light.LIMITED,
        )


# The corpora of SpeechStew besides LibriSpeech and Common Voice. AMI is also tested on the distant
# microphone, Switchboard on CallHome, as splits of these tasks and as tasks of their own.
SPEECHSTEW = {
    "tedlium": SPLITS,
    "ami": (*SPLITS, "test_distant"),
    "broadcast_news": SPLITS,
    "switchboard_fisher": (*SPLITS, "test_callhome"),
    "wsj": SPLITS,
}


def add_speechstew() -> None:
    """Registers the corpora of `SPEECHSTEW`, all of them English and transcribed."""
    for corpus, splits in SPEECHSTEW.items():
        add_corpus_task(corpus, "en", stream="paired", language="en", splits=splits)
    for corpus, suffix in (("ami", "distant"), ("switchboard_fisher", "callhome")):
        add_corpus_task(
            corpus,
            "en",
            stream="paired",
            language="en",
            splits={"test": f"test_{suffix}"},
            name=f"{corpus}_paired_en_{suffix}",
        )


def add_voxpopuli() -> None:
    """Registers VoxPopuli; `..._14` mixes the languages over which papers average."""
    for language in voxpopuli.LANGUAGES:
        add_corpus_task("voxpopuli", language, stream="paired", language=language)
    for config, language in voxpopuli.ACCENTED.items():
        add_corpus_task(
            "voxpopuli",
            config,
            stream="paired",
            language=language,
            splits=("test",),
            requested=config,
        )
    _add_text("voxpopuli_text", voxpopuli.LANGUAGES)
    for stem in ("voxpopuli_paired", "voxpopuli_text"):
        add_corpus_mixtures(stem, [f"{stem}_{code}" for code in voxpopuli.LANGUAGES])
        averaged = [f"{stem}_{code}" for code in voxpopuli.AVERAGED_LANGUAGES]
        add_corpus_mixtures(f"{stem}_14", averaged)
    for subset in (*voxpopuli.SUBSETS, voxpopuli.SPEAKER_TURNS):
        names = []
        for language in voxpopuli.UNLABELLED_LANGUAGES:
            config = f"{subset}_{language}"
            task = add_corpus_task(
                "voxpopuli_unlabelled",
                config,
                stream="speech",
                language=language,
                splits=TRAIN,
                requested=config,
            )
            names.append(task.name)
        add_corpus_mixtures(f"voxpopuli_unlabelled_speech_{subset}", names)


def add_mls() -> None:
    """Registers MLS; nine tenths of its hours are English."""
    languages = tuple(mls.LANGUAGES.values())
    for stream in ("paired", "speech"):
        for language in languages:
            add_corpus_task("mls", language, stream=stream, language=language)
        add_corpus_mixtures(f"mls_{stream}", [f"mls_{stream}_{code}" for code in languages])
    _add_text("mls_text", languages)
    add_corpus_mixtures("mls_text", [f"mls_text_{code}" for code in languages])
    for subset, train in libri_light.LIMITED_SUBSETS.items():
        names = [f"mls_paired_{language}_{subset}" for language in languages]
        for language, name in zip(languages, names, strict=True):
            splits = {"train": train, "validation": "validation", "test": "test"}
            add_corpus_task(
                "mls", language, stream="paired", language=language, splits=splits, name=name
            )
        add_corpus_mixtures(f"mls_paired_{subset}", names)


COMMON_VOICE_REGIONS = ("zh_tw", "zh_hk")
"""Further locales of languages that have configs of their own."""
COMMON_VOICE_MIXED = ("en", *covost2.INTO_ENGLISH)
"""The languages of the mixtures, which are those of CoVoST-2."""


def add_common_voice() -> None:
    """Registers Common Voice; validated and other clips are only for training."""
    for config in (*LANGUAGES, *COMMON_VOICE_REGIONS):
        _add_common_voice_config(config)
    add_task_family(
        TaskFamily("common_voice", ("paired", "speech", "text"), _add_common_voice_config)
    )
    for stream in ("paired", "speech"):
        stem = f"common_voice_{stream}"
        add_corpus_mixtures(stem, [f"{stem}_{code}" for code in COMMON_VOICE_MIXED])


def _add_common_voice_config(config: str) -> None:
    """Registers the tasks of a language or locale, such as `ml` or `zh_tw`, and of its tables."""
    locale = config.removesuffix("_validated").removesuffix("_other")
    language = base_language(config_language(locale))
    for stream in ("paired", "speech", "text"):
        add_corpus_task("common_voice", locale, stream=stream, language=language, requested=locale)
    for table, stream in (("validated", "paired"), ("other", "speech")):
        name = f"{locale}_{table}"
        add_corpus_task(
            "common_voice", name, stream=stream, language=language, splits=TRAIN, requested=name
        )


COVOST2_INTO_ENGLISH = tuple(f"{language}_en" for language in covost2.INTO_ENGLISH)
COVOST2_FROM_ENGLISH = tuple(f"en_{language}" for language in covost2.FROM_ENGLISH)


def add_covost2() -> None:
    """Registers CoVoST-2: mixtures into English (`x_en`), from English (`en_x`), and `paired`."""
    for config in (*COVOST2_INTO_ENGLISH, *COVOST2_FROM_ENGLISH):
        language, target = config.split("_")
        for stream in ("st", "mt", "paired"):
            add_corpus_task(
                "covost2",
                config,
                stream=stream,
                language=language,
                target_language=target,
                requested=config,
            )
    directions = {"x_en": COVOST2_INTO_ENGLISH, "en_x": COVOST2_FROM_ENGLISH}
    for stream in ("st", "mt"):
        for direction, configs in directions.items():
            names = [f"covost2_{stream}_{config}" for config in configs]
            add_corpus_mixtures(f"covost2_{stream}_{direction}", names)
    # Only one direction from English, since all of them have the same English clips.
    recognised = (*COVOST2_INTO_ENGLISH, COVOST2_FROM_ENGLISH[0])
    add_corpus_mixtures("covost2_paired", [f"covost2_paired_{config}" for config in recognised])


def add_fleurs() -> None:
    """Registers FLEURS; its languages all have about ten hours, so `..._equal` differs little."""
    # FLEURS has no Haitian Creole, Guarani or Tok Pisin, and of the Kurdish languages only Sorani.
    languages = [code for code in LANGUAGES if code not in ("ht", "gn", "tpi", "ku")]
    names = [_add_fleurs_language(code) for code in languages]
    add_task_family(TaskFamily("fleurs", ("paired",), _add_fleurs_language))
    add_corpus_mixtures("fleurs_paired", names, temperatures={"equal": math.inf})


def _add_fleurs_language(config: str) -> str:
    language = config_language(config)
    return add_corpus_task("fleurs", config, stream="paired", language=language).name


def add_recordings() -> None:
    """Registers what `maestro prepare manifest --name recordings` has prepared, in any language."""
    add_task_family(TaskFamily("recordings", RECORDINGS_STREAMS, _add_recordings_language))


def _add_recordings_language(config: str) -> None:
    language = base_language(config_language(config))
    for stream in RECORDINGS_STREAMS:
        add_corpus_task("recordings", config, stream=stream, language=language, requested=config)


def add_babel() -> None:
    """Registers Babel; the split `limited` has the ten hours of the limited language pack."""
    splits = {split: split for split in SPLITS} | {"limited": "sub_train"}
    for stream in ("paired", "speech"):
        names = [
            add_corpus_task("babel", code, stream=stream, language=code, splits=splits).name
            for code in babel.LANGUAGE_CODES.values()
        ]
        add_corpus_mixtures(f"babel_{stream}", names)


def _add_text(corpus: str, languages: tuple[str, ...]) -> None:
    """Registers tasks of a corpus whose name ends in `_text`, which the tasks' do not repeat."""
    for language in languages:
        add_corpus_task(
            corpus,
            language,
            stream="text",
            language=language,
            splits=TRAIN,
            name=f"{corpus}_{language}",
        )


add_librispeech()
add_libri_light()
add_speechstew()
add_voxpopuli()
add_mls()
add_common_voice()
add_covost2()
add_fleurs()
add_recordings()
add_babel()
