"""LibriSpeech (Panayotov et al., 2015), and the text of its language models.

`LibriSpeech` reads what the archives unpack to: `LibriSpeech/train-clean-100/...`. `SPEAKERS.TXT`
is a table with pipes between its columns, comments after semicolons, and names that may hold pipes
themselves. It lists the speakers of each split, and so tells which were not unpacked.

`LibriSpeechText` reads `librispeech-lm-norm.txt.gz` of openslr.org/11, which need not be unpacked:
14,500 books of Project Gutenberg without those of the development and test sets, normalised, in
upper case.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from maestro_jax.data.corpora import tables
from maestro_jax.data.corpora.corpus import Corpus, Utterance, select
from maestro_jax.data.corpora.issues import IssueLog
from maestro_jax.data.corpora.text_files import SentencesByLanguage, lower_case

SPEAKERS = "SPEAKERS.TXT"
TEXT_FILES = ("librispeech-lm-norm.txt.gz", "librispeech-lm-norm.txt")


class LibriSpeech(Corpus):
    """English audio books; the only config is `en`."""

    name = "librispeech"
    title = "LibriSpeech: a directory with train-clean-100, dev-clean and so on"
    splits = (
        *("train_clean_100", "train_clean_360", "train_other_500"),
        *("dev_clean", "dev_other", "test_clean", "test_other"),
    )

    def configs(self, source: Path, languages: Sequence[str] = ()) -> list[str]:
        """Lists `en`, if there is any split; see `Corpus`."""
        root = _root(source)
        available = ["en"] if any((root / _folder(name)).is_dir() for name in self.splits) else []
        return select(available, languages, source, "splits of LibriSpeech")

    def utterances(self, source: Path, config: str, issues: IssueLog) -> Iterator[Utterance]:
        """Yields the lines of the transcript files, split by split; see `Corpus`."""
        root = _root(source)
        speakers = _read_speakers(root / SPEAKERS, issues)
        for split in self.splits:
            directory = root / _folder(split)
            if not directory.is_dir():
                continue
            for place, speaker in speakers.get(_folder(split), []):
                if not (directory / speaker).is_dir():
                    detail = f"there is no directory of speaker {speaker}"
                    issues.add("no counterpart", split=split, item=place, detail=detail)
            yield from read_chapters(directory, split, issues)


class LibriSpeechText(SentencesByLanguage):
    """English books; the only config is `en`."""

    name = "librispeech_text"
    title = "the text of LibriSpeech's language models: a directory with " + TEXT_FILES[0]

    def files(self, source: Path) -> Mapping[str, Path]:
        """Returns the file; see `SentencesByLanguage`."""
        paths = [path for name in TEXT_FILES if (path := source / name).is_file()]
        return {"en": paths[0]} if paths else {}


def read_chapters(directory: Path, split: str, issues: IssueLog) -> Iterator[Utterance]:
    """Yields the utterances of a directory of LibriSpeech's or Libri-Light's, speaker by speaker.

    Every line of `<speaker>-<chapter>.trans.txt` is the name of a flac file without its suffix, a
    space, and the words in upper case.

    Args:
        directory: Directory with `<speaker>/<chapter>/`.
        split: Split of the utterances.
        issues: Takes audio files without a transcript.

    Raises:
        UserError: A transcript file cannot be read.
    """
    for chapter in sorted(path for path in directory.glob("*/*") if path.is_dir()):
        speaker = chapter.parent.name
        transcripts = chapter / f"{speaker}-{chapter.name}.trans.txt"
        untranscribed = {path.stem for path in chapter.glob("*.flac")}
        for _, line in tables.lines(transcripts) if transcripts.is_file() else ():
            name, _, raw_text = line.strip().partition(" ")
            if not name:
                continue
            untranscribed.discard(name)
            yield Utterance(
                id=name,
                split=split,
                language="en",
                audio=str(chapter / f"{name}.flac"),
                text=lower_case(raw_text),
                raw_text=raw_text,
                speaker=speaker,
                required=("text",),
            )
        for name in sorted(untranscribed):
            detail = f"audio without a line in {transcripts}"
            issues.add("no counterpart", split=split, item=name, detail=detail)


def _root(source: Path) -> Path:
    """Returns the directory of the splits, if `source` is it or its parent."""
    inner = source / "LibriSpeech"
    return inner if inner.is_dir() else source


def _folder(split: str) -> str:
    return split.replace("_", "-")


def _read_speakers(path: Path, issues: IssueLog) -> dict[str, list[tuple[str, str]]]:
    """Returns line and id of every speaker, by directory of the split; empty without a table."""
    speakers: dict[str, list[tuple[str, str]]] = {}
    if not path.is_file():
        return speakers
    for number, line in tables.lines(path):
        if not line.strip() or line.startswith(";"):
            continue
        place = f"{SPEAKERS}:{number}"
        # Id, sex, directory, minutes, name.
        fields = [field.strip() for field in line.split("|", maxsplit=4)]
        if len(fields) < 5:
            detail = f"{len(fields)} columns instead of 5"
            issues.add("bad row", item=place, detail=detail)
            continue
        speakers.setdefault(fields[2], []).append((place, fields[0]))
    return speakers
