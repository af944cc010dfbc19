"""Entity recall: how many of the names and terms of a list are found in what a model wrote."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from maestro_jax.scoring.metrics import KINDS, Metric
from maestro_jax.text.languages import writes_spaces
from maestro_jax.text.normalizers import normalize


class EntityRecall(Metric):
    """The share of the phrases in the references that the hypotheses of their utterances have.

    Phrases and texts are compared as transcripts are, normalised. A phrase that stands in a
    reference twice must be written twice. Phrases are sequences of whole words, and of characters
    in a language that puts no spaces between words. This is one minus the miss rate of Aleksic et
    al. 2015 and Zhao et al. 2019, whatever else is wrong.

    Args:
        phrases: The phrases.
    """

    name = "entity_recall"
    title = "Entity recall %"
    unit = "percent"
    kinds = KINDS
    higher_is_better = True

    def __init__(self, phrases: Iterable[str]) -> None:
        self.phrases = tuple(phrases)

    def statistics(
        self, references: Sequence[str], hypotheses: Sequence[str], language: str
    ) -> np.ndarray:
        """Counts phrases in references and those of them that were found, [utterances, 2]."""

        def units(text: str) -> str:
            words = normalize(text, language).split()
            # Between spaces, so that a phrase is found as whole words.
            return f" {' '.join(words)} " if writes_spaces(language) else "".join(words)

        phrases = [
            phrase for phrase in {units(phrase) for phrase in self.phrases} if phrase.strip()
        ]
        rows = []
        for reference, hypothesis in zip(references, hypotheses, strict=True):
            expected_in, found_in = units(reference), units(hypothesis)
            total = found = 0
            for phrase in phrases:
                if phrase in expected_in:
                    expected = _count(phrase, expected_in)
                    total += expected
                    found += min(expected, _count(phrase, found_in))
            rows.append([total, found])
        return np.asarray(rows, np.int64)

    def score(self, sums: np.ndarray) -> float:
        """Returns the recall; NaN if no reference has a phrase."""
        total, found = (int(value) for value in sums)
        return 100.0 * found / total if total else math.nan

    def counts(self, sums: np.ndarray) -> dict[str, int | float]:
        """Returns the number of phrases in the references, and how many were found."""
        return {"phrases": int(sums[0]), "found": int(sums[1])}


def _count(phrase: str, text: str) -> int:
    """Counts occurrences, which may share the space between them."""
    count, place = 0, text.find(phrase)
    while place >= 0:
        count += 1
        place = text.find(phrase, place + max(1, len(phrase) - 1))
    return count
