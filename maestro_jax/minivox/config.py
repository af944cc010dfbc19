"""Sizes and sound of MiniVox corpora."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from maestro_jax.minivox.meanings import KINDS


@dataclasses.dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """Sizes and sound of a corpus.

    An utterance depends on `seed`, its split and its number there, and on the fields that shape a
    sentence or its sound, but not on the sizes. A larger corpus therefore begins with the
    utterances of a smaller one.

    Attributes:
        languages: ISO 639-1 codes, of `sentences.SPEAKABLE`.
        paired: Number of transcribed training utterances by language.
        speech: Number of untranscribed training utterances per language.
        text: Number of unspoken training sentences per language, or by language.
        mt: Number of training sentences with an English translation per language except English.
        validation: Number of transcribed and translated utterances per language, by speakers who do
            not occur in training.
        test: The same for testing, by yet other speakers.
        seed: Random seed.
        max_meanings: Maximum number of sentences in an utterance.
        min_seconds: Minimum duration of an utterance; silence is added to shorter ones.
        max_seconds: Maximum duration of an utterance; longer sentences are spoken faster or
            replaced.
        max_words_per_minute: Maximum speaking rate of sentences that have to be spoken faster.
        noisy_share: Fraction of utterances with background noise, 0 to 1.
        room_share: Fraction of utterances in a reverberant room, 0 to 1.
        vocab_size: Maximum number of pieces of the SentencePiece vocabulary, which is trained on
            the training texts.
        vocab_kind: `unigram` (sub-words) or `char` (letters); or `byte`, which needs no training
            and always has 259 ids.
        kinds: Kinds of sentences, of `meanings.KINDS`; empty for all of them.
        phonemes: Whether there are a vocabulary of phonemes, and tasks whose texts are phonemes.
    """

    languages: tuple[str, ...]
    paired: Mapping[str, int]
    speech: int
    text: int | Mapping[str, int]
    mt: int
    validation: int
    test: int
    seed: int = 0
    max_meanings: int = 1
    min_seconds: float = 1.2
    max_seconds: float = 4.6
    max_words_per_minute: float = 260.0
    noisy_share: float = 0.5
    room_share: float = 0.5
    vocab_size: int = 256
    vocab_kind: str = "unigram"
    kinds: tuple[str, ...] = ()
    phonemes: bool = False

    def splits(self) -> dict[str, int]:
        """Returns the number of examples by split, such as `{"paired_de_train": 1500, ...}`.

        Splits are named `{stream}_{language}_{part}`. Those without examples are left out.
        """
        sizes = {}
        texts = self.text
        if not isinstance(texts, Mapping):
            texts = dict.fromkeys(self.languages, texts)
        for language in self.languages:
            sizes[f"paired_{language}_train"] = self.paired.get(language, 0)
            sizes[f"speech_{language}_train"] = self.speech
            sizes[f"text_{language}_train"] = texts.get(language, 0)
            sizes[f"mt_{language}_train"] = self.mt if language != "en" else 0
            sizes[f"paired_{language}_validation"] = self.validation
            sizes[f"paired_{language}_test"] = self.test
        return {split: size for split, size in sizes.items() if size}


SMALL = CorpusConfig(
    languages=("en", "de", "sl"),
    paired={"en": 2000, "de": 2000, "sl": 200},
    speech=500,
    text=5000,
    mt=5000,
    validation=40,
    test=100,
    max_seconds=3.2,
    max_words_per_minute=200.0,
    vocab_size=64,
    vocab_kind="char",
)
"""Three languages, one of them with minutes of transcribed speech; the demo trains on it.

Its vocabulary is letters, which a model of the demo's size learns in half the steps that sub-words
take.
"""


LOW_RESOURCE = dataclasses.replace(
    SMALL,
    paired={"en": 2000, "de": 2000, "sl": 24},
    text={"en": 2500, "de": 2500, "sl": 10000},
    mt=0,
)
"""`SMALL` with a minute of transcribed Slovene, more Slovene text, and no translations.

Examples that both corpora have are equal, including the whole test sets.
"""


STUDY = dataclasses.replace(
    LOW_RESOURCE,
    paired={"en": 2000, "de": 2000, "sl": 400},
    mt=5000,
    max_seconds=2.2,
    noisy_share=0.0,
    room_share=0.0,
    phonemes=True,
)
"""`LOW_RESOURCE` with more transcribed Slovene, of which studies take parts, and with translations.

Utterances are short and clean, so that a model learns them in minutes: a study trains dozens.
"""


TINY = CorpusConfig(
    languages=("en", "de", "sl"),
    paired={"en": 16, "de": 16, "sl": 8},
    speech=8,
    text=64,
    mt=64,
    validation=4,
    test=4,
    max_seconds=3.0,
    vocab_size=96,
)
"""A corpus that is made in seconds, to test whether a run works; too small to learn from."""


CALENDAR_KINDS = ("date", "weekday_date", "full_date")
"""Sentences with months and days of the week, which no other kind has."""

EVERYDAY = dataclasses.replace(
    SMALL,
    languages=("de",),
    paired={"de": 2000},
    speech=0,
    text=2000,
    mt=0,
    validation=100,
    test=150,
    kinds=tuple(kind for kind in KINDS if kind not in CALENDAR_KINDS),
)
"""German about everything but dates: the old domain of the adaptation experiment.

Its letters are all letters of `CALENDAR`, whose tasks use its vocabulary.
"""

CALENDAR = dataclasses.replace(EVERYDAY, paired={"de": 50}, text=2000, kinds=CALENDAR_KINDS, seed=1)
"""German dates: the new domain of the adaptation experiment, with two minutes of paired speech."""


def full(hours: float = 10.0) -> CorpusConfig:
    """Returns a corpus of six languages with longer utterances.

    Args:
        hours: Approximate hours of transcribed speech per language; Slovene has a twentieth. Each
            language has the same amount of untranscribed speech and, for each transcribed
            utterance, ten texts and two sentences with a translation. An hour takes 115 MB.
    """
    # An utterance of one to three sentences lasts 5 seconds on average (measured).
    utterances = max(1, round(hours * 3600 / 5.0))
    languages = ("en", "de", "fr", "es", "pl", "sl")
    paired = dict.fromkeys(languages, utterances)
    paired["sl"] = max(1, utterances // 20)
    return CorpusConfig(
        languages=languages,
        paired=paired,
        speech=utterances,
        text=10 * utterances,
        mt=2 * utterances,
        validation=250,
        test=1000,
        max_meanings=3,
        max_seconds=12.0,
        vocab_size=1024,
    )
