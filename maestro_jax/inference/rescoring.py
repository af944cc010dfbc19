"""Ranks the hypotheses of a beam with a language model over words.

Most models in the ARPA format are over words (LibriSpeech's, for one), which a search over pieces
cannot ask before a word is whole. They are used in a second pass over what a beam has found:

    fused score = score of the search + weight * log P_lm(words, end)

An attention decoder's scores are normalised by length, and so is what is added to them.
"""

from __future__ import annotations

import dataclasses
import functools
import string
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np

from maestro_jax.decoding.backoff import BackoffModel
from maestro_jax.decoding.hypotheses import Hypotheses

_MARKS = string.punctuation + "¿¡…«»“”„‘’、。！？"


@dataclasses.dataclass(frozen=True)
class WordLm:
    """An n-gram model over words.

    Where all words of the model are in one case, texts are read in that case. A word that it lacks
    is looked for without the punctuation around it, and is otherwise the unknown word.

    Attributes:
        model: The n-grams over ids.
        ids: Id of each word.
        unknown: Id of the unknown word.
    """

    model: BackoffModel
    ids: Mapping[str, int]
    unknown: int

    @functools.cached_property
    def _in_case(self) -> Callable[[str], str]:
        for change in (str.upper, str.lower):
            if all(change(word) == word for word in self.ids):
                return change
        return str

    def encode(self, text: str) -> list[int]:
        """Ids of the words of a text."""
        ids = []
        for word in self._in_case(text).split():
            found = self.ids.get(word)
            if found is None:
                bare = word.strip(_MARKS)
                if not bare:
                    continue
                found = self.ids.get(bare, self.unknown)
            ids.append(found)
        return ids

    def log_prob(self, text: str) -> float:
        """Of a text and its end, natural logarithm."""
        return self.model.text_log_prob(self.encode(text))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rescoring:
    """How a beam is ranked anew.

    Attributes:
        lm: The language model.
        weight: Of its log-probabilities.
        length_alpha: Exponent of the length normalisation of an attention decoder; 0 for none.
    """

    lm: WordLm
    weight: float
    length_alpha: float = 0.0

    def __call__(self, found: Hypotheses, texts: Sequence[Sequence[str]]) -> Hypotheses:
        """Ranks anew.

        Args:
            found: Numpy arrays `[batch, beam, ...]`, empty places last.
            texts: What each hypothesis says, `[batch][beam]`.

        Returns:
            The same hypotheses by their new fused scores, equal ones in their old order.
        """
        added = np.array([[self.lm.log_prob(text) for text in row] for row in texts])
        # The end of the text counts as a token.
        added /= ((6.0 + found.lengths) / 6.0) ** self.length_alpha
        fused = found.fused_scores + np.float32(self.weight) * added.astype(np.float32)
        order = np.argsort(-fused, axis=1, kind="stable")

        def arranged(x: np.ndarray) -> np.ndarray:
            return np.take_along_axis(x, order.reshape(order.shape + (1,) * (x.ndim - 2)), axis=1)

        return jax.tree.map(arranged, found._replace(fused_scores=fused))
