"""Corpora that are plain files of text, a sentence a line, published normalised."""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from maestro_jax.data.corpora import tables
from maestro_jax.data.corpora.corpus import Corpus, choose
from maestro_jax.data.corpora.plain_text import plain_text
from maestro_jax.data.corpora.problems import Problems
from maestro_jax.data.corpora.utterance import Utterance


class TextCorpus(Corpus):
    """A file of sentences for each language; the ids are the numbers of their lines."""

    splits = ("train",)
    # Some megabytes, of which every process has several in hand.
    part_utterances = 16_384
    numbered = True

    def text(self, line: str, language: str) -> str:
        """A line as models read and write it; by default only its case is changed."""
        del language
        return plain_text(line)

    @abc.abstractmethod
    def files(self, source: Path) -> Mapping[str, Path]:
        """The file of every language that is there, plain or gzipped."""

    def configs(self, source: Path, languages: Sequence[str] = ()) -> list[str]:
        """The languages; see `Corpus`."""
        return choose(list(self.files(source)), languages, source, "text files")

    def utterances(self, source: Path, config: str, problems: Problems) -> Iterator[Utterance]:
        """The lines of a language; see `Corpus`."""
        del problems
        for number, line in tables.lines(self.files(source)[config]):
            yield Utterance(
                id=str(number),
                split="train",
                language=config,
                text=self.text(line, config),
                raw_text=line,
                needs=("text",),
            )
