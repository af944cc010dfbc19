"""VoxPopuli's text for language models: its transcripts and Europarl, a sentence a line.

The project's `get_lm_data.py` writes `lm_data/<language>/sentences.txt`, in lower case, without
punctuation and with numbers in words. It is the unspoken text of MAESTRO's multilingual
experiments, which call it VP-T.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from maestro_jax.data.corpora.text_corpus import TextCorpus
from maestro_jax.data.corpora.voxpopuli import LANGUAGES


class VoxPopuliText(TextCorpus):
    """Unspoken text; a config is a language. Sentences that occur more than once stay."""

    name = "voxpopuli_text"
    title = "VoxPopuli text: lm_data/<language>/sentences.txt"

    def files(self, source: Path) -> Mapping[str, Path]:
        """The sentences of every language; see `TextCorpus`."""
        found = {
            language: source / "lm_data" / language / "sentences.txt" for language in LANGUAGES
        }
        return {language: path for language, path in found.items() if path.is_file()}
