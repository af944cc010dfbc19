"""The packs of the IARPA Babel programme: telephone conversations in 25 languages.

    BABEL_OP2_304/conversational/{training,sub-train,dev,eval}/audio/*.sph
    BABEL_OP2_304/conversational/{training,sub-train,dev,eval}/transcription/*.txt

A recording is one side of a call, at 8 kHz; some packs also have wav files. In its transcript, a
line with a time in brackets separates any two segments:

    [0.0]
    <no-speech>
    [2.485]
    allo <laugh> (()) as-
    [4.1]
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from maestro_jax.data.corpora import tables
from maestro_jax.data.corpora.corpus import Corpus, Utterance, select_languages
from maestro_jax.data.corpora.issues import IssueLog
from maestro_jax.errors import UserError
from maestro_jax.text.normalizers import normalize

LANGUAGE_CODES = {
    101: "yue", 102: "as", 103: "bn", 104: "ps", 105: "tr", 106: "tl", 107: "vi",
    201: "ht", 202: "sw", 203: "lo", 204: "ta", 205: "ku", 206: "zu", 207: "tpi",
    301: "ceb", 302: "kk", 303: "te", 304: "lt", 305: "gn", 306: "ig", 307: "am",
    401: "mn", 402: "jv", 403: "luo", 404: "ka",
}  # fmt: skip
"""Language of each pack, by the number in the names of releases and files."""

# `sub-train` is the ten hours of the limited language pack, which `training` contains.
DIRECTORIES = {
    "train": "training",
    "sub_train": "sub-train",
    "validation": "dev",
    "test": "eval",
}
_PACK = re.compile(r"BABEL_[A-Z0-9]+_(\d{3})")
_TIME = re.compile(r"\[\s*(\d+(?:\.\d*)?)\s*\]")
_TAG = re.compile(r"<[^<>]*>")
# Speech that is not transcribed: not understood, in another language, overlapping, or a machine's.
_UNTRANSCRIBED = re.compile(r"\(\(\s*\)\)|<(?:foreign|overlap|prompt)>")
# A transcribed word in another language.
_FOREIGN = re.compile(r"<foreign[^<>]*>([^<>]*)<[/\\]foreign>")


class Babel(Corpus):
    """The conversations of the Babel packs; a config is a language."""

    name = "babel"
    title = "Babel: releases like BABEL_OP2_304 with conversational/training/audio/*.sph"
    splits = tuple(DIRECTORIES)

    def configs(self, source: Path, languages: Sequence[str] = ()) -> list[str]:
        """Lists the languages of the releases; see `Corpus`."""
        available = dict.fromkeys(language for language, _ in _releases(source))
        return select_languages(list(available), languages, source)

    def utterances(self, source: Path, config: str, issues: IssueLog) -> Iterator[Utterance]:
        """Yields the segments of the recordings of a language; see `Corpus`."""
        for language, release in _releases(source):
            if language != config:
                continue
            for split, name in DIRECTORIES.items():
                directory = release / "conversational" / name
                if directory.is_dir():
                    yield from _read_recordings(directory, split, language, issues)


@dataclasses.dataclass(frozen=True)
class Segment:
    """A segment of a recording.

    Attributes:
        begin: Begin in seconds.
        end: End in seconds.
        transcript: Transcript with the marks of the transcribers.
    """

    begin: float
    end: float
    transcript: str


def _releases(source: Path) -> list[tuple[str, Path]]:
    """Returns language and directory of every release: `source` itself, or directories below it."""
    releases = []
    # LDC's releases are nested, as LDC2017S05/IARPA-babel304b/BABEL_OP2_304.
    for path in (source, *(p for depth in range(3) for p in source.glob("*/" * depth + "BABEL_*"))):
        match = _PACK.fullmatch(path.name)
        if match and (path / "conversational").is_dir():
            number = int(match[1])
            if number not in LANGUAGE_CODES:
                raise UserError(
                    f"{path} is a Babel pack of an unknown language, {number}; known: "
                    + ", ".join(f"{number} {code}" for number, code in LANGUAGE_CODES.items())
                )
            releases.append((LANGUAGE_CODES[number], path))
    return sorted(releases)


def _read_recordings(
    directory: Path, split: str, language: str, issues: IssueLog
) -> Iterator[Utterance]:
    """Yields the segments of all recordings of a split."""
    # Some releases come without the transcripts of `eval`.
    transcripts = {path.stem: path for path in (directory / "transcription").glob("*.txt")}
    recordings = {
        path.stem: path
        for suffix in (".wav", ".sph")
        for path in (directory / "audio").glob(f"*{suffix}")
    }
    for stem in sorted(transcripts.keys() | recordings.keys()):
        if stem not in transcripts:
            issues.add("no counterpart", split=split, item=stem, detail="no transcript")
            continue
        audio = recordings.get(stem, directory / "audio" / f"{stem}.sph")
        for segment in _read_segments(transcripts[stem], split, issues):
            identity = f"{stem}-{round(segment.begin * 1000):07d}"
            text, complete = words(segment.transcript)
            if not text:
                detail = segment.transcript or "nothing"
                issues.add("set aside", split=split, item=identity, detail=detail)
                continue
            if not complete:
                detail = segment.transcript
                issues.add("partly transcribed", split=split, item=identity, detail=detail)
            yield Utterance(
                id=identity,
                split=split,
                language=language,
                audio=str(audio),
                spans=((segment.begin, segment.end),),
                text=normalize(text, language),
                raw_text=segment.transcript,
                speaker=_speaker(stem),
                required=("text",),
            )


def _read_segments(path: Path, split: str, issues: IssueLog) -> Iterator[Segment]:
    """Yields the segments of a transcript, including those without words."""
    begin: float | None = None
    transcript: list[str] = []
    number = 0
    for number, line in tables.lines(path):
        line = line.strip()
        match = _TIME.fullmatch(line)
        if match is None:
            if line.startswith("[") or (line and begin is None):
                detail = f"no time: {line}" if begin is not None else f"before any time: {line}"
                issues.add("bad row", split=split, item=f"{path.name}:{number}", detail=detail)
            elif line:
                transcript.append(line)
            continue
        end = float(match[1])
        if begin is not None:
            if end > begin:
                yield Segment(begin, end, " ".join(transcript))
            else:
                detail = f"from {begin} to {end}"
                issues.add("bad value", split=split, item=f"{path.name}:{number}", detail=detail)
        begin, transcript = end, []
    if transcript:
        detail = f"no time after: {' '.join(transcript)}"
        issues.add("bad row", split=split, item=f"{path.name}:{number}", detail=detail)


def words(transcript: str) -> tuple[str, bool]:
    """Removes the marks of the transcribers.

    Args:
        transcript: Transcript of a segment. Noises, silence and changes of the speaker are in angle
            brackets; `*word*` is mispronounced, `wo-` broken off, `~` cut off by the segment.
            Spelled letters, and syllables of a word in some languages, are joined by `_`.

    Returns:
        The words, including the spoken part of those that are broken off, and whether they are all
        that is said in the segment.
    """
    text = _FOREIGN.sub(r" \1 ", transcript)
    complete = _UNTRANSCRIBED.search(text) is None
    text = _TAG.sub(" ", _UNTRANSCRIBED.sub(" ", text))
    kept = (word.strip("*~") for word in text.replace("_", " ").split())
    # The rest of a mark, such as the dash of a word of which nothing was said, is no word.
    return " ".join(word for word in kept if any(map(str.isalnum, word))), complete


def _speaker(stem: str) -> str:
    """Returns the speaker of a recording: the number of the phone, and the side of the line."""
    match = re.search(r"BABEL_[A-Z0-9]+_\d{3}_(\w+?)_.*_(\w+)$", stem)
    return f"{match[1]}-{match[2]}" if match else stem
