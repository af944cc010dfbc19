"""LibriSpeech as seqio tasks.

| task | train | validation, test |
|---|---|---|
| `librispeech_paired_en` | the 960 hours of the three training splits | `dev_clean`, `test_clean` |
| `librispeech_paired_en_other` | the same | `dev_other`, `test_other` |
| `librispeech_paired_en_clean100`, `..._clean460` | the clean 100 or 460 hours | clean |
| `librispeech_speech_en` | the audio of the 960 hours | clean |
| `librispeech_text_en` | the text of the language models | |
"""

from __future__ import annotations

from maestro_jax.tasks.corpus_tasks import add_corpus_task

_CLEAN = {"validation": "dev_clean", "test": "test_clean"}
_OTHER = {"validation": "dev_other", "test": "test_other"}
_CLEAN_460 = "train_clean_100+train_clean_360"
_ALL = f"{_CLEAN_460}+train_other_500"

_SPLITS = {
    "": {"train": _ALL, **_CLEAN},
    "_other": {"train": _ALL, **_OTHER},
    "_clean100": {"train": "train_clean_100", **_CLEAN},
    "_clean460": {"train": _CLEAN_460, **_CLEAN},
}

for _ending, _splits in _SPLITS.items():
    add_corpus_task(
        "librispeech",
        "en",
        stream="paired",
        language="en",
        splits=_splits,
        name=f"librispeech_paired_en{_ending}",
    )
add_corpus_task("librispeech", "en", stream="speech", language="en", splits=_SPLITS[""])
add_corpus_task(
    "librispeech_text",
    "en",
    stream="text",
    language="en",
    splits=("train",),
    name="librispeech_text_en",
)
