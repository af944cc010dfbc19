"""TED-LIUM 3 (Hernandez et al., 2018): talks in English, segmented by their aligned subtitles.

    legacy/{train,dev,test}/stm/<talk>.stm
    legacy/{train,dev,test}/sph/<talk>.sph      16 kHz NIST sphere

A line of an stm file is a segment: talk, channel, speaker, begin, end, a label in angle brackets,
and the transcript, in lower case and without punctuation. Releases 1 and 2 have the same files.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from maestro_jax.data.corpora import tables
from maestro_jax.data.corpora.corpus import Corpus, Utterance, select_languages
from maestro_jax.data.corpora.issues import IssueLog
from maestro_jax.errors import UserError
from maestro_jax.text.normalizers import normalize

DIRECTORIES = {"train": "train", "validation": "dev", "test": "test"}
_IGNORED = "ignore_time_segment_in_scoring"
# Conditions and speaker, as <o,f0,male>; it may be missing.
_LABEL = re.compile(r"\A<(?!unk>|sil>)[^<>]*>", re.IGNORECASE)
_UNKNOWN = re.compile(r"<unk>", re.IGNORECASE)
# Silence and noise, and, in the earlier releases, the number of a pronunciation of a word.
_MARKS = re.compile(r"<[^<>]*>|\{[^{}]*\}|\[[^][]*\]|\(\d+\)")
# Clitics that tokenisation separated. Other words begin with an apostrophe themselves: 'cause.
_CLITIC = re.compile(r"(?<=\w) (?='(?:s|re|ve|ll|d|m|t)\b)", re.IGNORECASE)


class Tedlium(Corpus):
    """TED-LIUM; its only config is `en`."""

    name = "tedlium"
    title = "TED-LIUM 3: legacy/{train,dev,test}, each with stm/*.stm and sph/*.sph"

    def configs(self, source: Path, languages: Sequence[str] = ()) -> list[str]:
        """Lists `en`, if there are transcripts; see `Corpus`."""
        available = any(
            next((_root(source) / name / "stm").glob("*.stm"), None)
            for name in DIRECTORIES.values()
        )
        return select_languages(["en"] if available else [], languages, source)

    def utterances(self, source: Path, config: str, issues: IssueLog) -> Iterator[Utterance]:
        """Yields the segments of all talks; see `Corpus`."""
        for split, name in DIRECTORIES.items():
            directory = _root(source) / name
            transcripts = sorted((directory / "stm").glob("*.stm"))
            if not transcripts:
                raise UserError(f"{directory / 'stm'} has no transcripts; unpack all of TED-LIUM.")
            for transcript in transcripts:
                yield from _segments(transcript, directory / "sph", split, issues)


def _root(source: Path) -> Path:
    """Returns the directory of the splits; of release 3, the partition of release 2."""
    return source / "legacy" if (source / "legacy").is_dir() else source


def _segments(path: Path, recordings: Path, split: str, issues: IssueLog) -> Iterator[Utterance]:
    """Yields the segments of a talk."""
    for number, line in tables.lines(path):
        if not line.strip() or line.startswith(";;"):
            continue
        place = f"{path.name}:{number}"
        fields = line.split(maxsplit=5)
        if len(fields) < 5:
            detail = f"{len(fields)} fields"
            issues.add("bad row", split=split, item=place, detail=detail)
            continue
        talk, _, speaker, *times = fields[:5]
        try:
            begin, end = map(float, times)
        except ValueError:
            begin = end = math.nan
        if not 0 <= begin < end < math.inf:
            detail = f"from {times[0]} to {times[1]}"
            issues.add("bad value", split=split, item=place, detail=detail)
            continue
        transcript = _LABEL.sub("", "".join(fields[5:])).strip()
        identity = f"{talk}-{round(begin * 1000):08d}-{round(end * 1000):08d}"
        text = words(transcript)
        if transcript.lower() == _IGNORED or not text:
            issues.add("set aside", split=split, item=identity, detail=transcript or "nothing")
            continue
        if _UNKNOWN.search(transcript):
            issues.add("partly transcribed", split=split, item=identity, detail=transcript)
        yield Utterance(
            id=identity,
            split=split,
            language="en",
            audio=str(recordings / f"{talk}.sph"),
            spans=((begin, end),),
            text=normalize(text, "en"),
            raw_text=transcript,
            speaker=speaker,
            required=("text",),
        )


def words(transcript: str) -> str:
    """Removes marks from a transcript, and joins clitics to their words.

    Args:
        transcript: A transcript such as `it 's a <unk> <sil> read(2)`.

    Returns:
        `it's a read`.
    """
    plain = " ".join(_MARKS.sub(" ", transcript).split())
    return _CLITIC.sub("", plain)
