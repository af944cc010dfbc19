"""TED-LIUM 3 (Hernandez et al., 2018): talks in English, cut into segments by aligned subtitles.

    legacy/{train,dev,test}/stm/<talk>.stm
    legacy/{train,dev,test}/sph/<talk>.sph      16 kHz NIST sphere

A line of an stm file is a segment: talk, channel, speaker, begin, end, a label in angle brackets,
and what is said, in lower case and without punctuation. Releases 1 and 2 have the same files.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from maestro_jax.data.corpora import tables
from maestro_jax.data.corpora.corpus import Corpus, Published, choose_languages
from maestro_jax.data.corpora.problems import Problems
from maestro_jax.data.corpora.utterance import Utterance
from maestro_jax.errors import UserError
from maestro_jax.text.normalizers import normalize

DIRECTORIES = {"train": "train", "validation": "dev", "test": "test"}
_IGNORED = "ignore_time_segment_in_scoring"
# Of conditions and speaker, as <o,f0,male>; it may be missing.
_LABEL = re.compile(r"\A<(?!unk>|sil>)[^<>]*>", re.IGNORECASE)
_UNKNOWN = re.compile(r"<unk>", re.IGNORECASE)
# Silence and noise, and, in the earlier releases, which pronunciation of a word was heard.
_MARKS = re.compile(r"<[^<>]*>|\{[^{}]*\}|\[[^][]*\]|\(\d+\)")
# Endings that tokenisation cut off. Other words begin with an apostrophe of their own: 'cause.
_ENDING = re.compile(r"(?<=\w) (?='(?:s|re|ve|ll|d|m|t)\b)", re.IGNORECASE)


class Tedlium(Corpus):
    """TED-LIUM; its only config is `en`."""

    name = "tedlium"
    title = "TED-LIUM 3: legacy/{train,dev,test}, each with stm/*.stm and sph/*.sph"

    def configs(self, source: Path, languages: Sequence[str] = ()) -> list[str]:
        """English, if there are transcripts; see `Corpus`."""
        found = any(
            next((_root(source) / name / "stm").glob("*.stm"), None)
            for name in DIRECTORIES.values()
        )
        return choose_languages(["en"] if found else [], languages, source)

    def utterances(self, source: Path, config: str, problems: Problems) -> Iterator[Utterance]:
        """The segments of all talks; see `Corpus`."""
        for split, name in DIRECTORIES.items():
            directory = _root(source) / name
            transcripts = sorted((directory / "stm").glob("*.stm"))
            if not transcripts:
                raise UserError(f"{directory / 'stm'} has no transcripts; unpack all of TED-LIUM.")
            for transcript in transcripts:
                yield from _segments(transcript, directory / "sph", split, problems)

    def published(self, source: Path, config: str) -> Mapping[str, Published]:
        """The hours of the paper, and the segments that development and test sets score."""
        del source, config
        return {
            "train": Published(hours=452.0),
            "validation": Published(507),
            "test": Published(1155),
        }


def _root(source: Path) -> Path:
    """The directory of the splits: of the two partitions of release 3, the one of release 2."""
    return source / "legacy" if (source / "legacy").is_dir() else source


def _segments(
    transcript: Path, recordings: Path, split: str, problems: Problems
) -> Iterator[Utterance]:
    for number, line in tables.lines(transcript):
        if not line.strip() or line.startswith(";;"):
            continue
        place = f"{transcript.name}:{number}"
        fields = line.split(maxsplit=5)
        if len(fields) < 5:
            detail = f"{len(fields)} fields"
            problems.add("bad row", split=split, item=place, detail=detail)
            continue
        talk, _, speaker, *times = fields[:5]
        try:
            begin, end = map(float, times)
        except ValueError:
            begin = end = math.nan
        if not 0 <= begin < end < math.inf:
            detail = f"from {times[0]} to {times[1]}"
            problems.add("bad value", split=split, item=place, detail=detail)
            continue
        said = _LABEL.sub("", "".join(fields[5:])).strip()
        identity = f"{talk}-{round(begin * 1000):08d}-{round(end * 1000):08d}"
        text = words(said)
        if said.lower() == _IGNORED or not text:
            problems.add("set aside", split=split, item=identity, detail=said or "nothing")
            continue
        if _UNKNOWN.search(said):
            problems.add("partly transcribed", split=split, item=identity, detail=said)
        yield Utterance(
            id=identity,
            split=split,
            language="en",
            audio=str(recordings / f"{talk}.sph"),
            spans=((begin, end),),
            text=normalize(text, "en"),
            raw_text=said,
            speaker=speaker,
            needs=("text",),
        )


def words(said: str) -> str:
    """What was said, without marks, and with the endings of words where they belong.

    Args:
        said: A transcript such as `it 's a <unk> <sil> read(2)`.

    Returns:
        `it's a read`.
    """
    plain = " ".join(_MARKS.sub(" ", said).split())
    return _ENDING.sub("", plain)
