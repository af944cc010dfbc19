"""The text that language models for MLS are trained on: `mls_lm_german/data.txt`, and so on.

Books of Project Gutenberg in lower case, without those of the development and test sets
(openslr.org/94). They are normalised as the transcripts are, see `mls`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from maestro_jax.data.corpora.mls import LANGUAGES
from maestro_jax.data.corpora.text_corpus import TextCorpus
from maestro_jax.text.normalizers import normalize

FILES = ("data.txt", "data.txt.gz")


class MlsText(TextCorpus):
    """Books in eight languages; a config is a language."""

    name = "mls_text"
    title = "the text of MLS' language models: a directory with mls_lm_german and so on"

    def text(self, line: str, language: str) -> str:
        """See `TextCorpus`."""
        return normalize(line, language)

    def files(self, source: Path) -> Mapping[str, Path]:
        """See `TextCorpus`."""
        found: dict[str, Path] = {}
        for language, code in LANGUAGES.items():
            name = f"mls_lm_{language}"
            directory = source if source.name == name else source / name
            for path in (directory / file for file in FILES):
                if path.is_file():
                    found.setdefault(code, path)
        return found
