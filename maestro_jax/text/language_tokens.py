"""What each language writes: counts of tokens in training texts.

Two things follow from the counts: which tokens a language never writes, so that a search can leave
them out, and which language a text is written in.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np
from etils import epath

from maestro_jax.errors import UserError, near_misses
from maestro_jax.files import write_atomically
from maestro_jax.text.languages import base_language
from maestro_jax.text.vocabularies import EOS_ID, PAD_ID, Vocabulary

LANGUAGE_TOKENS_FILE = "language_tokens.json"
"""File of the counts in a model directory."""


@dataclasses.dataclass(frozen=True, eq=False)
class LanguageTokens:
    """Counts of the tokens of a vocabulary, by language.

    Attributes:
        vocabulary: SHA-256 of the vocabulary's file.
        counts: Number of occurrences of each token in the texts of each language, int64 `[vocab]`.
        letters: Tokens of one character that stands in the texts of each language, also where the
            vocabulary has longer pieces for it.
    """

    vocabulary: str
    counts: Mapping[str, np.ndarray]
    letters: Mapping[str, frozenset[int]]

    @classmethod
    def count(cls, texts: Iterable[tuple[str, str]], vocabulary: Vocabulary) -> LanguageTokens:
        """Counts tokens.

        Args:
            texts: Pairs of a language and a text in it.
            vocabulary: Encodes the texts.
        """
        size = vocabulary.vocab_size
        counts: dict[str, np.ndarray] = {}
        characters: dict[str, set[str]] = {}
        for language, text in texts:
            of_language = counts.setdefault(language, np.zeros(size, np.int64))
            np.add.at(of_language, vocabulary.encode(text), 1)
            characters.setdefault(language, set()).update(text)
        ids: dict[str, list[int]] = {}
        for token, written in enumerate(vocabulary.token_bytes()):
            if written is not None and len(written) <= 5:
                # A letter, with the space of the word that it begins or without.
                letter = written.decode(errors="ignore").removeprefix(" ")
                if len(letter) == 1:
                    ids.setdefault(letter, []).append(token)
        letters = {
            language: frozenset(token for c in own for token in ids.get(c, ()))
            for language, own in characters.items()
        }
        return cls(_digest(vocabulary), counts, letters)

    @property
    def languages(self) -> tuple[str, ...]:
        """Returns the codes of the languages."""
        return tuple(self.counts)

    def find(self, language: str) -> str | None:
        """Returns the code under which a language was counted, with or without its region."""
        if language in self.counts:
            return language
        base = base_language(language)
        return next((code for code in self.counts if base_language(code) == base), None)

    def written_by(self, language: str, size: int) -> np.ndarray:
        """Returns which tokens a language writes.

        Args:
            language: Code of the language.
            size: Number of tokens of a decoder; it never writes those beyond the vocabulary.

        Returns:
            Bool `[size]`: True for tokens that its texts have, letters that they have, padding and
            the end of sequence.

        Raises:
            UserError: If there are no counts of the language.
        """
        code = self.find(language)
        if code is None:
            raise UserError(
                f"the model was not trained on texts in {language!r}, so it is not known what that "
                f"language writes; it was on {', '.join(self.counts)}."
                f"{near_misses(language, self.counts)}"
            )
        written = np.zeros(size, bool)
        written[: len(self.counts[code])] = self.counts[code] > 0
        written[[PAD_ID, EOS_ID, *self.letters[code]]] = True
        return written

    def identify(self, tokens: Sequence[int], among: Collection[str] = ()) -> str:
        """Returns the language that a text is most likely written in.

        A naive Bayes classifier: tokens are independent given the language, with add-one smoothed
        frequencies, and all languages are equally likely beforehand.

        Args:
            tokens: Token ids; those beyond the vocabulary are ignored.
            among: Languages to choose from; all that were counted by default.

        Returns:
            Its code; of equally likely ones the first, and empty for a text without tokens.
        """
        best, highest = "", -np.inf
        known = np.array([token for token in tokens if token not in (PAD_ID, EOS_ID)], np.int64)
        for language, counts in self.counts.items():
            known = known[known < len(counts)]
            if not len(known) or (among and language not in among):
                continue
            score = float(np.sum(np.log(counts[known] + 1.0) - np.log(counts.sum() + len(counts))))
            if score > highest:
                best, highest = language, score
        return best

    def save(self, directory: epath.PathLike) -> None:
        """Writes ``language_tokens.json`` into a model directory."""
        content = {
            "vocabulary": self.vocabulary,
            "languages": {
                language: {
                    "counts": {str(token): int(counts[token]) for token in np.flatnonzero(counts)},
                    "letters": sorted(self.letters[language]),
                }
                for language, counts in self.counts.items()
            },
        }
        text = json.dumps(content, separators=(",", ":")) + "\n"
        write_atomically(epath.Path(directory) / LANGUAGE_TOKENS_FILE, text.encode())

    @classmethod
    def load(cls, directory: epath.PathLike, vocabulary: Vocabulary) -> LanguageTokens | None:
        """Reads the counts of a model directory.

        Args:
            directory: The model directory.
            vocabulary: The model's vocabulary.

        Returns:
            The counts; None where there are none, or those of another vocabulary.

        Raises:
            UserError: The file holds something else.
        """
        path = epath.Path(directory) / LANGUAGE_TOKENS_FILE
        if not path.exists():
            return None
        try:
            content = json.loads(path.read_text())
            if content["vocabulary"] != _digest(vocabulary):
                return None
            counts, letters = {}, {}
            for language, own in content["languages"].items():
                counts[language] = np.zeros(vocabulary.vocab_size, np.int64)
                for token, count in own["counts"].items():
                    counts[language][int(token)] = count
                letters[language] = frozenset(own["letters"])
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise UserError(f"{path} is not what was written; remove it") from error
        return cls(content["vocabulary"], counts, letters)


def _digest(vocabulary: Vocabulary) -> str:
    return hashlib.sha256(vocabulary.model_bytes).hexdigest()
