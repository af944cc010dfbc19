"""What a synthetic corpus consists of."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

STREAMS = ("paired", "speech", "text", "mt")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """Sizes and sound of a corpus.

    An utterance depends on `seed`, its split, its language and its number there, and on the fields
    that shape a sentence or its sound; it does not depend on how many others there are. A larger
    corpus therefore begins with the utterances of a smaller one.

    Attributes:
        languages: ISO 639-1 codes, of `sentences.SPEAKABLE`.
        paired: Transcribed training utterances by language; a language may have few or none.
        speech: Untranscribed training utterances a language.
        text: Unspoken training sentences a language, or by language.
        mt: Training sentences with an English translation, a language other than English.
        validation: Transcribed and translated utterances a language, of voices unheard in training.
        test: The same for testing, of still other voices.
        seed: Another seed makes another corpus of the same kind.
        max_meanings: How many sentences an utterance strings together, at most.
        min_seconds: No utterance is shorter; silence is added.
        max_seconds: No utterance is longer; long sentences are spoken faster or left out.
        max_words_per_minute: How fast a sentence may be spoken to fit.
        noisy_share: Share of utterances with background noise, 0 to 1.
        room_share: Share of utterances in a reverberant room, 0 to 1.
        vocab_size: Pieces of the SentencePiece vocabulary that is trained on the training texts, at
            most.
        vocab_kind: What they are: `unigram` (sub-words) or `char` (letters); or `byte`, which needs
            no training and always has 259.
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

    def splits(self) -> dict[str, int]:
        """The number of examples by split, e.g. `{"paired_de_train": 1500, ...}`.

        Names are `{stream}_{language}_{part}`. Splits without examples are left out.
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
"""Three languages, one of them with minutes of transcribed speech: what the demo trains on.

Its vocabulary is letters: a model of this size hears what letters sound like in half the steps that
it needs for pieces of words.
"""


LOW_RESOURCE = dataclasses.replace(
    SMALL,
    paired={"en": 2000, "de": 2000, "sl": 24},
    text={"en": 2500, "de": 2500, "sl": 10000},
    mt=0,
)
"""The same with a minute of transcribed Slovene and plenty of Slovene text; nothing is translated.

What both have is equal: the utterances are the first ones of `SMALL`, and the test set is the same.
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
"""The same in seconds, to see a new task or a changed model run; too small to learn from."""


def full(hours: float = 10.0) -> CorpusConfig:
    """Six languages and longer utterances.

    Args:
        hours: Transcribed speech of a language, about; Slovene has a twentieth of it. There is as
            much untranscribed speech in every language, ten texts for every transcribed utterance,
            and two sentences with a translation. An hour takes 115 MB.
    """
    # Measured: an utterance of one to three sentences lasts 5 seconds on average.
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
