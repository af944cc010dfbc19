"""The figures of a directory that the rules of `maestro quickstart` look at."""

from __future__ import annotations

import collections
import dataclasses
import math
import unicodedata
from collections.abc import Iterable, Sequence

import numpy as np

from maestro_jax.data.corpora.text_files import sentences
from maestro_jax.experiments.quickstart.splits import Splits
from maestro_jax.experiments.quickstart.survey import Heard
from maestro_jax.text.languages import base_language, normalize_language
from maestro_jax.text.normalizers import normalize
from maestro_jax.training.metrics import duration

_WAYS = {
    "given": "from the directory",
    "speakers": "held out by speakers",
    "sentences": "held out by sentences",
    "recordings": "held out by recordings",
}
MOST_LENGTHS = 4
"""The most batch lengths that a stream may have."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figures:
    """What a directory holds; lengths and texts are those of the training set.

    Attributes:
        languages: Codes of the spoken and written languages, the most frequent first.
        target_language: Language of the translations; empty if there are none.
        utterances: Number of transcribed utterances by split.
        hours: Hours of transcribed speech by split.
        speakers: Number of speakers by split; 0 if they are not known.
        speakers_apart: Whether no speaker of the test set is trained on; None if that is not known.
        split_by: See `splits.Splits.by`.
        sentences_shared: Fraction of the test utterances whose sentence occurs in training.
        untranscribed_hours: Hours of speech without a transcript.
        unspoken_lines: Number of sentences of text without speech.
        unspoken_tests: Fraction of the test utterances whose sentence is among these.
        longest_line: Characters at which they are divided: one in fifty exceeds them, and no
            transcript does, but for one in a thousand.
        translated: Number of utterances with a translation by split.
        median_seconds: Median length of a recording.
        padding: Length of batches beside that of their recordings, with one batch length, two and
            so on.
        longest_seconds: Length that only one in a thousand recordings exceeds.
        longest_text: Characters that only one in a thousand texts exceeds.
        longest_translation: The same of translations.
        characters: Number of characters of all transcripts.
        alphabet: Number of different characters, those of translations and lines included.
        fast: Characters per second that only one in twenty utterances exceeds.
        scripts: Names of the scripts, the most frequent first.
    """

    languages: tuple[str, ...]
    target_language: str = ""
    utterances: dict[str, int]
    hours: dict[str, float]
    speakers: dict[str, int]
    speakers_apart: bool | None
    split_by: str
    sentences_shared: float
    untranscribed_hours: float = 0.0
    unspoken_lines: int = 0
    unspoken_tests: float = 0.0
    longest_line: int = 0
    translated: dict[str, int] = dataclasses.field(default_factory=dict)
    median_seconds: float
    padding: tuple[float, ...]
    longest_seconds: float
    longest_text: int
    longest_translation: int = 0
    characters: int
    alphabet: int
    fast: float
    scripts: tuple[str, ...]

    @property
    def text_hours(self) -> float:
        """Returns the hours that the unspoken lines would take, read out as the others are."""
        spoken = max(self.utterances.get("train", 0), 1)
        return self.unspoken_lines * self.hours.get("train", 0.0) / spoken

    @property
    def speech_hours(self) -> float:
        """Returns the hours of all speech to train on."""
        return self.hours.get("train", 0.0) + self.untranscribed_hours

    def split_in_words(self) -> str:
        """Says how the sets were divided, and what they share."""
        lacking = [name for name in ("test", "validation") if not self.utterances.get(name)]
        if len(lacking) == 2:
            return "There are too few recordings to hold any out: nothing is scored."
        test, _, validation = self.split_by.partition("+")
        ways = {"test": _WAYS[test], "validation": _WAYS[validation or test]}
        if lacking:
            ways[lacking[0]] = "empty for want of recordings"
        if len(set(ways.values())) == 1:
            how = f"The test and validation sets are {ways['test']}"
        else:
            how = f"The test set is {ways['test']}, the validation set is {ways['validation']}"
        speakers = {
            True: "no speaker of the test set is trained on",
            False: "speakers of the test set are trained on, too",
            None: "not all speakers are known",
        }[self.speakers_apart]
        if not any(self.speakers.values()):
            speakers = "speakers are not known"
        shared = f"{self.sentences_shared:.0%} of the test sentences are trained on"
        words = f"{how}: {speakers}, and {shared}."
        if self.unspoken_tests:
            words += (
                f" {self.unspoken_tests:.0%} of them are in the unspoken text, which makes scores "
                "better than they are."
            )
        return words

    def contents_in_words(self) -> str:
        """Says which languages and scripts there are, and what is unpaired."""
        languages = "language" if len(self.languages) == 1 else "languages"
        scripts = " and ".join(_NAMES.get(script, script) for script in self.scripts[:3])
        words = f"{languages} {', '.join(self.languages)}, in {scripts or 'no'} letters"
        if self.target_language:
            words += f", with translations into {self.target_language}"
        if self.untranscribed_hours:
            words += f"; {duration(self.untranscribed_hours * 3600)} of untranscribed speech"
        if self.unspoken_lines:
            words += f"; {self.unspoken_lines} sentences of unspoken text"
        return f"{words[:1].upper()}{words[1:]}."

    def rows(self) -> list[dict[str, object]]:
        """Returns a table by split."""
        rows: list[dict[str, object]] = []
        for split in ("train", "validation", "test"):
            count = self.utterances.get(split, 0)
            row: dict[str, object] = {"split": split, "utterances": count}
            row["length"] = duration(self.hours.get(split, 0.0) * 3600)
            row["speakers"] = self.speakers.get(split) or ("?" if count else 0)
            if self.target_language:
                row["translated"] = self.translated.get(split, 0)
            rows.append(row)
        return rows


def figures_of(
    utterances: Sequence[Heard],
    splits: Splits,
    unpaired: Sequence[Heard],
    target_language: str,
) -> Figures:
    """Computes the figures.

    Args:
        utterances: Utterances with a transcript or a translation.
        splits: Their splits.
        unpaired: Recordings without a transcript, and texts without a recording.
        target_language: Language of the translations.
    """
    by_split: dict[str, list[Heard]] = collections.defaultdict(list)
    for each, split in zip(utterances, splits.of, strict=True):
        by_split[split].append(each)
    train = by_split["train"]
    texts = [normalize(each.entry.text, each.entry.language) for each in train]
    translations = [each.entry.translation for each in train if each.entry.translation]
    seconds = np.array([each.seconds for each in train])
    lengths = np.array([len(text) for text in texts])
    lines = [each.entry for each in unpaired if not each.entry.audio]
    languages = collections.Counter(
        normalize_language(each.entry.language) for each in (*utterances, *unpaired)
    )
    unspoken = [
        normalize(sentence, line.language) for line in lines for sentence in sentences(line.text)
    ]
    known = set(unspoken)
    longest_text = round(_nearly_longest(lengths))
    long_line = np.quantile([len(one) for one in unspoken], 0.98) if unspoken else 0
    tested = [normalize(each.entry.text, each.entry.language) for each in by_split["test"]]
    has_translations = any(each.entry.translation for each in utterances)
    return Figures(
        languages=tuple(language for language, _ in languages.most_common()),
        target_language=target_language if has_translations else "",
        utterances={split: len(each) for split, each in by_split.items()},
        hours={split: sum(one.seconds for one in each) / 3600 for split, each in by_split.items()},
        speakers={
            split: len({one.entry.speaker for one in each if one.entry.speaker})
            for split, each in by_split.items()
        },
        speakers_apart=splits.speakers_apart,
        split_by=splits.by,
        sentences_shared=splits.sentences_shared,
        untranscribed_hours=sum(each.seconds for each in unpaired) / 3600,
        unspoken_lines=len(unspoken),
        unspoken_tests=sum(text in known for text in tested if text) / max(len(tested), 1),
        longest_line=max(longest_text, math.ceil(long_line)) if unspoken else 0,
        translated={
            split: sum(bool(one.entry.translation) for one in each)
            for split, each in by_split.items()
        },
        median_seconds=float(np.median(seconds)),
        padding=_padding(seconds, _nearly_longest(seconds)),
        longest_seconds=_nearly_longest(seconds),
        longest_text=longest_text,
        longest_translation=round(_nearly_longest(np.array([len(one) for one in translations]))),
        characters=int(lengths.sum()),
        alphabet=len(set().union(*texts, *translations, *unspoken)),
        fast=float(np.quantile(lengths / np.maximum(seconds, 0.1), 0.95)),
        scripts=scripts_of(texts),
    )


def _nearly_longest(values: np.ndarray) -> float:
    """Returns what only one in a thousand exceeds; 0 of none."""
    return float(np.quantile(values, 0.999, method="higher")) if len(values) else 0.0


def _padding(seconds: np.ndarray, longest: float) -> tuple[float, ...]:
    """Returns the padded by the real length, with one batch length up to `MOST_LENGTHS`."""
    from maestro_jax.data.bucketing import best_limits

    lengths = np.minimum(np.maximum(seconds, 0.1), longest) * 1000
    weights = np.ones(len(lengths))
    most = math.ceil(longest * 1000)
    found = []
    for count in range(1, MOST_LENGTHS + 1):
        limits = best_limits(lengths, weights, count, longest=most, multiple=80)
        padded = np.asarray(limits)[np.searchsorted(limits, lengths)]
        found.append(float(padded.sum() / lengths.sum()))
    return tuple(found)


def scripts_of(texts: Iterable[str]) -> tuple[str, ...]:
    """Returns the scripts of some texts by Unicode's names of letters, the most frequent first."""
    letters = collections.Counter(character for text in texts for character in text)
    scripts: collections.Counter[str] = collections.Counter()
    for character, count in letters.items():
        if character.isalpha():
            scripts[unicodedata.name(character, "?").split()[0].title()] += count
    return tuple(script for script, _ in scripts.most_common())


_LIKELY = {
    "Latin": "en", "Cyrillic": "ru", "Arabic": "ar", "Devanagari": "hi", "Cjk": "zh",
    "Hiragana": "ja", "Katakana": "ja", "Hangul": "ko", "Greek": "el", "Hebrew": "he",
    "Malayalam": "ml", "Tamil": "ta", "Telugu": "te", "Kannada": "kn", "Bengali": "bn",
    "Gujarati": "gu", "Gurmukhi": "pa", "Oriya": "or", "Sinhala": "si", "Thai": "th", "Lao": "lo",
    "Khmer": "km", "Myanmar": "my", "Tibetan": "bo", "Georgian": "ka", "Armenian": "hy",
    "Ethiopic": "am",
}  # fmt: skip


_NAMES = {"Cjk": "Han"}
"""What scripts are called, where it is not the first word of the names of their letters."""


def likely_language(texts: Sequence[str]) -> str:
    """Guesses a language by the most frequent script; `en` for Latin letters, or for none."""
    scripts = scripts_of(texts)
    if scripts[:1] == ("Cjk",) and {"Hiragana", "Katakana"} & set(scripts):
        return "ja"
    return base_language(_LIKELY.get(scripts[0], "en")) if scripts else "en"
