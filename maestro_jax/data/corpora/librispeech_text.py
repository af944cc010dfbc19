"""The text that language models for LibriSpeech are trained on (openslr.org/11).

14,500 books of Project Gutenberg, those of the development and test sets left out, normalised and
in upper case: `librispeech-lm-norm.txt.gz`, which need not be unpacked.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from maestro_jax.data.corpora.text_corpus import TextCorpus

FILES = ("librispeech-lm-norm.txt.gz", "librispeech-lm-norm.txt")


class LibriSpeechText(TextCorpus):
    """English books; the only config is `en`."""

    name = "librispeech_text"
    title = "the text of LibriSpeech's language models: a directory with " + FILES[0]

    def files(self, source: Path) -> Mapping[str, Path]:
        """See `TextCorpus`."""
        found = [path for name in FILES if (path := source / name).is_file()]
        return {"en": found[0]} if found else {}
