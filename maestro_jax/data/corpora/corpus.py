"""What it takes to read a corpus in its official layout, and where the corpora are."""

from __future__ import annotations

import abc
import dataclasses
import importlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from maestro_jax.data.corpora.problems import Problems
from maestro_jax.data.corpora.utterance import Utterance
from maestro_jax.errors import UserError, near_misses
from maestro_jax.text.languages import LANGUAGES, language_id

_log = logging.getLogger(__name__)

WHOLE = "all splits"
"""In the place of a split's name, where only the size of all of them is published."""


@dataclasses.dataclass(frozen=True)
class Published:
    """What the corpus' paper or page says of a split.

    Attributes:
        utterances: How many; None if it does not say.
        hours: How long; None if it does not say.
    """

    utterances: int | None = None
    hours: float | None = None


class Corpus(abc.ABC):
    """A corpus as it lies on disk once it is downloaded.

    A corpus is prepared one *config* at a time, usually a language (`de`) or a pair of them
    (`de_en`).

    Attributes:
        name: By which `maestro prepare` and its tasks know it.
        title: One line that says what it is and which layout is read.
        splits: The splits that it may have.
        part_utterances: How many utterances one process takes at once, and a shard holds: some
            100 MB of audio, which is also what an interruption costs each process. Text takes more.
        numbered: Whether ids are numbers of lines: there are no duplicates to look for then, and no
            gigabytes of ids to remember.
        rules: By which its texts are normalised, where that can be chosen: a name of
            `maestro_jax.text.spoken_forms.RULES`.
    """

    name: str
    title: str
    splits: tuple[str, ...] = ("train", "validation", "test")
    part_utterances: int = 256
    numbered: bool = False
    rules: str = ""

    @abc.abstractmethod
    def configs(self, source: Path, languages: Sequence[str] = ()) -> list[str]:
        """What can be prepared.

        Args:
            source: The directory of the corpus.
            languages: ISO 639-1 codes that are wanted; all that are there if none is named.

        Raises:
            UserError: A language is not there, or nothing is.
        """

    @abc.abstractmethod
    def utterances(self, source: Path, config: str, problems: Problems) -> Iterator[Utterance]:
        """All utterances of a config, in an order that never changes; audio is not opened.

        Args:
            source: The directory of the corpus.
            config: One of `configs`.
            problems: Takes what is wrong with the tables. Empty texts, duplicate ids and whatever
                concerns audio are found by the caller.

        Raises:
            UserError: A table is missing or is not one.
        """

    def published(self, source: Path, config: str) -> Mapping[str, Published]:
        """The published sizes of the splits of a config, or of `WHOLE`, as far as known.

        Args:
            source: The directory of the corpus, which may say which release it is.
            config: One of `configs`.
        """
        del source, config
        return {}


# By name: the module of `maestro_jax.data.corpora`, and what makes the corpus there.
_CORPORA: dict[str, tuple[str, str]] = {
    "manifest": ("manifest", "Manifest"),
    "librispeech": ("librispeech", "LibriSpeech"),
    "librispeech_text": ("librispeech_text", "LibriSpeechText"),
    "libri_light": ("libri_light", "LibriLight"),
    "mls": ("mls", "Mls"),
    "mls_text": ("mls_text", "MlsText"),
    "common_voice": ("common_voice", "CommonVoice"),
    "covost2": ("covost2", "Covost2"),
    "voxpopuli": ("voxpopuli", "VoxPopuli"),
    "voxpopuli_unlabelled": ("voxpopuli_unlabelled", "VoxPopuliUnlabelled"),
    "voxpopuli_text": ("voxpopuli_text", "VoxPopuliText"),
    "fleurs": ("fleurs", "Fleurs"),
    "babel": ("babel", "Babel"),
    "tedlium": ("tedlium", "Tedlium"),
    "ami": ("speechstew", "ami"),
    "broadcast_news": ("speechstew", "broadcast_news"),
    "switchboard_fisher": ("speechstew", "switchboard_fisher"),
    "wsj": ("speechstew", "wsj"),
    "text_files": ("text_files", "TextFiles"),
    "parallel_text": ("parallel_text", "ParallelText"),
}


def corpus_names() -> tuple[str, ...]:
    """The names of all corpora that can be read."""
    return tuple(_CORPORA)


def find_corpus(name: str) -> Corpus:
    """The corpus of a name.

    Raises:
        UserError: There is none; the message offers the nearest ones.
    """
    if name not in _CORPORA:
        remedy = near_misses(name, _CORPORA) or f" There are: {', '.join(_CORPORA)}."
        raise UserError(f"there is no corpus {name!r} to prepare.{remedy}")
    module, kind = _CORPORA[name]
    return getattr(importlib.import_module(f"maestro_jax.data.corpora.{module}"), kind)()


def choose(there: Sequence[str], wanted: Sequence[str], source: Path, what: str) -> list[str]:
    """The wanted ones among those that are there.

    Args:
        there: What was found, in its order.
        wanted: What was asked for; everything if it is empty.
        source: Where it was looked for, for messages.
        what: What they are, such as `languages`.

    Raises:
        UserError: Something wanted is not there, or nothing is there.
    """
    if not there:
        raise UserError(f"there are no {what} in {source}; name the directory of the corpus.")
    for name in wanted:
        if name not in there:
            raise UserError(
                f"{name!r} is not among the {what} in {source}: {', '.join(there)}."
                f"{near_misses(name, there)}"
            )
    return list(wanted or there)


def choose_languages(there: Sequence[str], wanted: Sequence[str], source: Path) -> list[str]:
    """The wanted languages among those that are there; by default all that models can be told.

    Args:
        there: ISO 639-1 codes of what was found, in its order.
        wanted: What was asked for; everything of `LANGUAGES` if it is empty. What is left out then
            is logged.
        source: Where it was looked for, for messages.

    Raises:
        UserError: Something wanted is not there or not of `LANGUAGES`, or nothing is there.
    """
    chosen = choose(there, wanted, source, "languages")
    if wanted:
        for language in chosen:
            language_id(language)
        return chosen
    known = [language for language in chosen if language in LANGUAGES]
    if unknown := [language for language in chosen if language not in LANGUAGES]:
        _log.warning(
            "%s: left out, for they are not in maestro_jax.text.languages: %s",
            source,
            " ".join(unknown),
        )
    if not known:
        language_id(unknown[0])
    return known
