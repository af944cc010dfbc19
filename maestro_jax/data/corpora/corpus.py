"""The interface of a corpus reader, the utterances that it yields, and the list of all corpora."""

from __future__ import annotations

import abc
import collections
import dataclasses
import functools
import importlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from maestro_jax.data.corpora.issues import IssueLog
from maestro_jax.errors import UserError, near_misses
from maestro_jax.text.languages import config_name, is_language

_log = logging.getLogger(__name__)

Span = tuple[float, float]
"""Begin and end of a piece of an audio file, in seconds."""


class Embedded(NamedTuple):
    """Where in a Parquet file the bytes of a recording are.

    Attributes:
        column: Name of the column.
        row: Number of the row, from 0.
    """

    column: str
    row: int


ALL_SPLITS = "all splits"
"""Stands for a split's name where only the total size of all splits is published."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Utterance:
    """An utterance as the tables of a corpus describe it; fields that a corpus lacks are empty.

    Attributes:
        id: Identifier, unique within the split.
        split: `train`, `validation`, `test`, or another split of the corpus.
        language: ISO 639-1 code of the spoken or written language.
        audio: Path of the audio file, in any container that `maestro_jax.audio.reading` reads;
            empty for text. Of a recording inside a Parquet file, the path of that.
        embedded: Where in the Parquet file the recording is; None for an audio file.
        spans: The pieces of the file that make up the utterance, in order; None for the whole file.
        text: Normalised text, as models read and write it.
        raw_text: Text as the corpus prints it.
        translation: Translation into the language that the config of the corpus names, with case
            and punctuation.
        speaker: The corpus' name for the speaker.
        required: Names of the fields, `text` or `translation`, that must not be empty.
    """

    id: str
    split: str
    language: str
    audio: str = ""
    embedded: Embedded | None = None
    spans: tuple[Span, ...] | None = None
    text: str = ""
    raw_text: str = ""
    translation: str = ""
    speaker: str = ""
    required: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class PublishedSize:
    """Size of a split according to the paper or the page of its corpus.

    Attributes:
        utterances: Number of utterances; None if it is not published.
        hours: Hours of audio; None if they are not published.
    """

    utterances: int | None = None
    hours: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class SplitSize:
    """How many utterances a prepared split should have, and what is missing.

    Attributes:
        published: Published number of utterances; None if it is not known.
        listed: Number of utterances in the tables that were prepared; None if it is not known.
        left_out: Utterances that `maestro prepare` left out, by the kind of issue.
    """

    published: int | None = None
    listed: int | None = None
    left_out: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @property
    def expected(self) -> int | None:
        """The published number of utterances, else that of the tables; None if neither is known."""
        return self.listed if self.published is None else self.published

    def __add__(self, other: SplitSize) -> SplitSize:
        """Adds the sizes of two splits; what is not known of one is not known of the sum."""

        def total(one: int | None, another: int | None) -> int | None:
            return None if one is None or another is None else one + another

        return SplitSize(
            published=total(self.published, other.published),
            listed=total(self.listed, other.listed),
            left_out=dict(collections.Counter(self.left_out) + collections.Counter(other.left_out)),
        )


class Corpus(abc.ABC):
    """Reads a corpus in the layout in which its publisher distributes it.

    A corpus is prepared one *config* at a time, usually a language (`de`) or a pair of languages
    (`de_en`).

    Attributes:
        name: Name in `maestro prepare` and in the names of tasks.
        title: One line with the name of the corpus and the layout that is read.
        splits: Names of the splits that the corpus may have.
        utterances_per_shard: Utterances that one process converts at once and writes to one shard:
            about 100 MB of audio, which is also what each process loses when it is interrupted.
        ids_are_line_numbers: Whether ids are numbers of lines. They are unique then, and are not
            kept in memory to look for duplicates.
        text_rules: Name of the normalisation of texts, of `maestro_jax.text.normalizers.RULES`;
            empty where it cannot be chosen.
    """

    name: str
    title: str
    splits: tuple[str, ...] = ("train", "validation", "test")
    utterances_per_shard: int = 256
    ids_are_line_numbers: bool = False
    text_rules: str = ""

    @abc.abstractmethod
    def configs(self, source: Path, languages: Sequence[str] = ()) -> list[str]:
        """Lists the configs that can be prepared.

        Args:
            source: Directory of the corpus.
            languages: ISO 639-1 codes of the requested languages; all available ones by default.

        Raises:
            UserError: A requested language is not available, or nothing is.
        """

    @abc.abstractmethod
    def utterances(self, source: Path, config: str, issues: IssueLog) -> Iterator[Utterance]:
        """Yields all utterances of a config in a fixed order, without opening audio files.

        Args:
            source: Directory of the corpus.
            config: One of `configs`.
            issues: Takes what is wrong with the tables. The caller checks for empty texts and
                duplicate ids, and checks the audio.

        Raises:
            UserError: A table is missing or cannot be read.
        """

    def published(self, source: Path, config: str) -> Mapping[str, PublishedSize]:
        """Returns the published size of each split of a config, or of `ALL_SPLITS`.

        Args:
            source: Directory of the corpus, whose name may tell the release.
            config: One of `configs`.
        """
        return published_sizes(self.name, config)


@functools.cache
def _published_tables() -> dict[str, dict[str, dict[str, tuple[int | None, float | None]]]]:
    path = Path(__file__).with_name("published_sizes.json")
    return json.loads(path.read_text(encoding="utf-8"))


def published_sizes(corpus: str, config: str) -> dict[str, PublishedSize]:
    """Returns the published size of each split, from `published_sizes.json`.

    Args:
        corpus: Name of a corpus, or of a release of it, such as `common_voice/17.0`.
        config: Name of the config in that file.

    Returns:
        Sizes by split; empty if none are known.
    """
    sizes = _published_tables().get(corpus, {}).get(config, {})
    return {split: PublishedSize(*size) for split, size in sizes.items()}


# Name of each corpus, its module in `maestro_jax.data.corpora`, and the class or function there.
_CORPORA: dict[str, tuple[str, str]] = {
    "manifest": ("manifest", "Manifest"),
    "librispeech": ("librispeech", "LibriSpeech"),
    "librispeech_text": ("librispeech", "LibriSpeechText"),
    "libri_light": ("libri_light", "LibriLight"),
    "mls": ("mls", "Mls"),
    "mls_text": ("mls", "MlsText"),
    "common_voice": ("common_voice", "CommonVoice"),
    "covost2": ("covost2", "Covost2"),
    "voxpopuli": ("voxpopuli", "VoxPopuli"),
    "voxpopuli_unlabelled": ("voxpopuli", "VoxPopuliUnlabelled"),
    "voxpopuli_text": ("voxpopuli", "VoxPopuliText"),
    "fleurs": ("fleurs", "Fleurs"),
    "babel": ("babel", "Babel"),
    "tedlium": ("tedlium", "Tedlium"),
    "ami": ("manifest", "ami"),
    "broadcast_news": ("manifest", "broadcast_news"),
    "switchboard_fisher": ("manifest", "switchboard_fisher"),
    "wsj": ("manifest", "wsj"),
    "parquet": ("parquet", "Parquet"),
    "text_files": ("text_files", "TextFiles"),
    "parallel_text": ("text_files", "ParallelText"),
}


def corpus_names() -> tuple[str, ...]:
    """Returns the names of all corpora that can be read."""
    return tuple(_CORPORA)


def find_corpus(name: str) -> Corpus:
    """Returns the corpus of a name.

    Raises:
        UserError: There is no such corpus; the message suggests similar names.
    """
    if name not in _CORPORA:
        remedy = near_misses(name, _CORPORA) or f" There are: {', '.join(_CORPORA)}."
        raise UserError(f"there is no corpus {name!r} to prepare.{remedy}")
    module, factory = _CORPORA[name]
    return getattr(importlib.import_module(f"maestro_jax.data.corpora.{module}"), factory)()


def select(
    available: Sequence[str], requested: Sequence[str], source: Path, kind: str
) -> list[str]:
    """Selects the requested names among the available ones.

    Args:
        available: Names that the corpus has, in its order.
        requested: Names that the user asked for; all available ones if it is empty.
        source: Directory of the corpus, for messages.
        kind: What the names stand for, such as `languages`, for messages.

    Raises:
        UserError: A requested name is not available, or nothing is available.
    """
    if not available:
        raise UserError(f"there are no {kind} in {source}; name the directory of the corpus.")
    for name in requested:
        if name not in available:
            raise UserError(
                f"{name!r} is not among the {kind} in {source}: {', '.join(available)}."
                f"{near_misses(name, available)}"
            )
    return list(requested or available)


def select_languages(available: Sequence[str], requested: Sequence[str], source: Path) -> list[str]:
    """Selects the requested languages, by default all that are available.

    Args:
        available: Languages of the corpus, in its order, in the form of `config_name`.
        requested: Codes that the user asked for, in any form. If it is empty, names that are no
            language codes are left out, and a warning names them.
        source: Directory of the corpus, for messages.

    Raises:
        UserError: A requested language is not available or not a language, or nothing is
            available.
    """
    names = [name if name in available else config_name(name) for name in requested]
    selected = select(available, names, source, "languages")
    languages = [language for language in selected if is_language(language)]
    if unknown := [language for language in selected if language not in languages]:
        _log.warning(
            "%s: left out, because they are not language codes: %s", source, " ".join(unknown)
        )
    if requested or not languages:
        config_name(*unknown[:1] or selected[:1])  # Raises for what is no language.
    return languages
