"""Languages written without spaces between words, and what recognition is scored by in each."""

from __future__ import annotations

from typing import Literal

from maestro_jax.text.languages import base_language

ErrorRate = Literal["wer", "cer"]

UNSPACED: frozenset[str] = frozenset(
    {
        # Chinese, in codes of ISO 639-1 and 639-3: Mandarin, Cantonese, Wu, Min, Hakka and so on.
        *("zh", "zho", "cmn", "yue", "wuu", "nan", "hak", "gan", "hsn", "cdo", "cjy", "lzh"),
        *("ja", "jpn"),
        *("th", "tha", "lo", "lao", "km", "khm", "my", "mya", "shn"),  # Thai, Lao, Khmer, Burmese.
        *("bo", "bod", "dz", "dzo"),  # Tibetan and Dzongkha, which mark syllables.
    }
)
"""Codes of languages whose words are not parted by spaces, or by a mark that is no space."""


def writes_spaces(language: str) -> bool:
    """Returns whether a language puts spaces between words.

    Args:
        language: ISO 639 code, with or without a region.
    """
    return base_language(language) not in UNSPACED


def error_rate_of(language: str) -> ErrorRate:
    """Returns the error rate by which recognition of a language is reported.

    A word error rate needs words. Where none are written, one wrong character makes a whole
    sentence wrong, so these languages are reported by character, as FLEURS (arXiv 2205.12446) and
    Whisper (arXiv 2212.04356) do.

    Args:
        language: ISO 639 code, with or without a region.

    Returns:
        `wer` or `cer`.
    """
    return "wer" if writes_spaces(language) else "cer"
