"""What a vocabulary makes of a language: how long texts become, and what does not come back."""

from __future__ import annotations

import collections
import dataclasses
import os
import unicodedata
from collections.abc import Iterable
from typing import Any

from sacrebleu.metrics import BLEU

from maestro_jax.scoring.metrics import bleu_tokenizer, get_metric
from maestro_jax.text.composition import spelled
from maestro_jax.text.writing_systems import error_rate_of, writes_spaces
from maestro_jax.vocabularies.vocabulary import UNK_ID, Vocabulary

_EXAMPLES = 3  # Texts that are shown where some are not given back.
_EXAMPLE_LETTERS = 60


@dataclasses.dataclass(frozen=True)
class LanguageRow:
    """What became of a language.

    Attributes:
        language: ISO 639-1 code.
        sentences: How many there are for training.
        sampled: How many were read; more than there are where some were read repeatedly.
        empty: How many of those were empty.
        tokens_a_word: Over the sample, as are all that follow; each text counts once.
        unknown_percent: Tokens in a hundred that the vocabulary cannot write.
        changed: Texts that are another text once they are encoded and decoded; white space and
            Unicode's forms NFC and NFD make no difference.
        round_trip_error: The word error rate of the decoded texts in percent; the character error
            rate of a language without spaces.
        round_trip_bleu_loss: By how much their BLEU is below 100, that of the texts themselves.
        lost: Characters that do not come back, the most frequent first.
        examples: Some texts, or parts of them, before and after.
    """

    language: str
    sentences: int
    sampled: int
    empty: int
    tokens_a_word: float
    unknown_percent: float
    # None of a vocabulary that was made before they were measured.
    changed: int | None = None
    round_trip_error: float | None = None
    round_trip_bleu_loss: float | None = None
    lost: tuple[str, ...] = ()
    examples: tuple[tuple[str, str], ...] = ()

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> LanguageRow:
        """Reads what `dataclasses.asdict` made."""
        examples = tuple((before, after) for before, after in values.get("examples", ()))
        return cls(**{**values, "lost": tuple(values.get("lost", ())), "examples": examples})

    def warning(self) -> str | None:
        """What the vocabulary does not give back, in one line; None if it gives all back."""
        if not self.changed:
            return None
        metric = error_rate_of(self.language).upper()
        said = (
            f"{self.language}: the vocabulary does not give back {self.changed} texts as they are "
            f"({metric} {self.round_trip_error}, BLEU {self.round_trip_bleu_loss} lower)"
        )
        if self.lost:
            said += f", for want of {', '.join(map(_named, self.lost))}"
        return said + "".join(f"; {before!r} becomes {after!r}" for before, after in self.examples)


def measured(vocabulary: Vocabulary, texts: Iterable[str], language: str) -> dict[str, Any]:
    """How long a language becomes, and how much of it is lost.

    Args:
        vocabulary: What encodes.
        texts: Of the language; each counts once.
        language: ISO 639-1 code.

    Returns:
        The fields of a `LanguageRow` that say so.
    """
    words = tokens = unknown = units = 0
    before, changed = [], []
    lost: collections.Counter[str] = collections.Counter()
    for text in dict.fromkeys(texts):
        ids = vocabulary.encode(text)
        words += len(text.split())
        tokens += len(ids)
        unknown += ids.count(UNK_ID)
        expected, found = spelled(text), spelled(vocabulary.decode(ids))
        before.append(expected)
        units += len(expected.split() if writes_spaces(language) else expected.replace(" ", ""))
        if found != expected:
            changed.append((expected, found))
            lost += collections.Counter(expected) - collections.Counter(found)
    error = bleu_loss = 0.0
    if changed:
        after = dict(changed)
        error_rate = get_metric(error_rate_of(language))
        edits = error_rate.statistics(list(after), list(after.values()), language)
        errors = edits[:, :3].sum()
        error = 100.0 * float(errors) / max(units, 1)
        # The effective order: a text of fewer than four words has a BLEU of 100 with itself.
        bleu = BLEU(tokenize=bleu_tokenizer(language), effective_order=True)
        decoded = [after.get(text, text) for text in before]
        bleu_loss = 100.0 - bleu.corpus_score(decoded, [before]).score
    return {
        "tokens_a_word": round(tokens / max(words, 1), 2),
        "unknown_percent": round(100.0 * unknown / max(tokens, 1), 3),
        "changed": len(changed),
        "round_trip_error": _rounded(error),
        "round_trip_bleu_loss": _rounded(bleu_loss),
        "lost": tuple(letter for letter, _ in lost.most_common(10)),
        "examples": tuple(_around_the_change(*pair) for pair in changed[:_EXAMPLES]),
    }


def _rounded(percent: float) -> float:
    """With as many digits as a table needs; what is above 0 stays so."""
    return round(percent, 2) or float(f"{percent:.1g}")


def _around_the_change(before: str, after: str) -> tuple[str, str]:
    """Both texts from shortly before they differ."""
    start = max(0, len(os.path.commonprefix([before, after])) - _EXAMPLE_LETTERS // 3)
    return before[start : start + _EXAMPLE_LETTERS], after[start : start + _EXAMPLE_LETTERS]


def _named(letter: str) -> str:
    """A character so that it is seen, whatever it is: `U+200C ZERO WIDTH NON-JOINER`."""
    name = f"U+{ord(letter):04X} {unicodedata.name(letter, '')}".strip()
    return f"{letter} ({name})" if letter.isprintable() and letter.strip() else name
