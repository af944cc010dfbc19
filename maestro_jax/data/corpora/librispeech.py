"""LibriSpeech (Panayotov et al., 2015), as its archives unpack: `LibriSpeech/train-clean-100/...`.

`SPEAKERS.TXT` is a table between pipes, with comments after semicolons, and names that may hold
pipes of their own. It tells which speakers a split should have, hence which were not unpacked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from maestro_jax.data.corpora import tables
from maestro_jax.data.corpora.chapters import read_chapters
from maestro_jax.data.corpora.corpus import Corpus, Published, choose
from maestro_jax.data.corpora.problems import Problems
from maestro_jax.data.corpora.utterance import Utterance

# Hours: the paper. Utterances: lines of the transcript files.
PUBLISHED = {
    "train_clean_100": Published(28_539, 100.6),
    "train_clean_360": Published(104_014, 363.6),
    "train_other_500": Published(148_688, 496.7),
    "dev_clean": Published(2_703, 5.4),
    "dev_other": Published(2_864, 5.3),
    "test_clean": Published(2_620, 5.4),
    "test_other": Published(2_939, 5.1),
}
SPEAKERS = "SPEAKERS.TXT"


class LibriSpeech(Corpus):
    """English audio books; the only config is `en`."""

    name = "librispeech"
    title = "LibriSpeech: a directory with train-clean-100, dev-clean and so on"
    splits = tuple(PUBLISHED)

    def configs(self, source: Path, languages: Sequence[str] = ()) -> list[str]:
        """`en`, if any split is there; see `Corpus`."""
        root = _root(source)
        there = any((root / _folder(split)).is_dir() for split in self.splits)
        return choose(["en"] if there else [], languages, source, "splits of LibriSpeech")

    def utterances(self, source: Path, config: str, problems: Problems) -> Iterator[Utterance]:
        """The lines of the transcript files, split by split; see `Corpus`."""
        del config
        root = _root(source)
        speakers = _speakers(root / SPEAKERS, problems)
        for split in self.splits:
            directory = root / _folder(split)
            if not directory.is_dir():
                continue
            for place, speaker in speakers.get(_folder(split), []):
                if not (directory / speaker).is_dir():
                    detail = f"there is no directory of speaker {speaker}"
                    problems.add("no counterpart", split=split, item=place, detail=detail)
            yield from read_chapters(directory, split, problems)

    def published(self, source: Path, config: str) -> Mapping[str, Published]:
        """See `Corpus`."""
        del source, config
        return PUBLISHED


def _root(source: Path) -> Path:
    """The directory of the splits, if its parent is named."""
    inner = source / "LibriSpeech"
    return inner if inner.is_dir() else source


def _folder(split: str) -> str:
    return split.replace("_", "-")


def _speakers(path: Path, problems: Problems) -> dict[str, list[tuple[str, str]]]:
    """Place in the table and id of every speaker, by directory; empty without a table."""
    found: dict[str, list[tuple[str, str]]] = {}
    if not path.is_file():
        return found
    for number, line in tables.lines(path):
        if not line.strip() or line.startswith(";"):
            continue
        place = f"{SPEAKERS}:{number}"
        # Identity, sex, directory, minutes, name.
        fields = [field.strip() for field in line.split("|", maxsplit=4)]
        if len(fields) < 5:
            detail = f"{len(fields)} columns instead of 5"
            problems.add("bad row", item=place, detail=detail)
            continue
        found.setdefault(fields[2], []).append((place, fields[0]))
    return found
