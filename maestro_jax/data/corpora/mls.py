"""Multilingual LibriSpeech (Pratap et al., 2020), and the text of its language models.

`Mls` reads `mls_german` or `mls_german_opus`, and so on. `train`, `dev` and `test` each hold
`transcripts.txt` (id, tab, text), `segments.txt` (id, URL of a book, begin and end there) and
`audio/<speaker>/<book>/<id>.flac` or `.opus`, where an id is `<speaker>_<book>_<segment>`.
`train/limited_supervision` lists the ids of ten hours: `9hr/handles.txt`, and six folds of ten
minutes, `1hr/<fold>/handles.txt`.

`MlsText` reads `mls_lm_german/data.txt`, and so on, of openslr.org/94: books of Project Gutenberg
in lower case, without those of the development and test sets.

Transcripts and texts are published in lower case, with the hyphens of French and Portuguese
(`est-ce`). They are normalised by VoxPopuli's rules (`est ce`), since the paper trains one model on
both corpora, which cannot know from the audio which spelling is expected.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from maestro_jax.data.corpora import tables
from maestro_jax.data.corpora.corpus import Corpus, Utterance, select
from maestro_jax.data.corpora.issues import IssueLog
from maestro_jax.data.corpora.libri_light import LIMITED_SPLITS
from maestro_jax.data.corpora.text_files import SentencesByLanguage
from maestro_jax.errors import UserError
from maestro_jax.text.normalizers import normalize

LANGUAGES = {
    "english": "en",
    "german": "de",
    "dutch": "nl",
    "french": "fr",
    "spanish": "es",
    "italian": "it",
    "portuguese": "pt",
    "polish": "pl",
}
FOLDERS = {"train": "train", "validation": "dev", "test": "test"}
TEXT_FILES = ("data.txt", "data.txt.gz")


class Mls(Corpus):
    """Audio books in eight languages; a config is a language.

    Where a language is available both as flac and as opus, flac is read, which is lossless.
    """

    name = "mls"
    title = "Multilingual LibriSpeech: a directory with mls_german, mls_polish_opus and so on"
    splits = ("train", "validation", "test", *LIMITED_SPLITS)

    def configs(self, source: Path, languages: Sequence[str] = ()) -> list[str]:
        """Lists the languages; see `Corpus`."""
        return select(list(_directories(source)), languages, source, "languages of MLS")

    def utterances(self, source: Path, config: str, issues: IssueLog) -> Iterator[Utterance]:
        """Yields the lines of the transcript files, then those of the ten hours; see `Corpus`."""
        directory = _directories(source)[config]
        splits = [split for split, folder in FOLDERS.items() if (directory / folder).is_dir()]
        if not splits:
            raise UserError(f"{directory} has no train, dev or test; name the directory above it.")
        handles = _read_handles(directory)
        limited = {name for names in handles.values() for name in names}
        texts: dict[str, str] = {}
        for split in splits:
            folder = directory / FOLDERS[split]
            for place, name, raw_text in _read_transcripts(folder, split, issues):
                if split == "train" and name in limited:
                    texts.setdefault(name, raw_text)
                if path := _audio_path(folder, name):
                    yield _utterance(name, path, split, config, raw_text)
                else:
                    detail = f"{name} is not <speaker>_<book>_<segment>"
                    issues.add("bad value", split=split, item=place, detail=detail)
        for split, names in handles.items():
            for name in names:
                path = _audio_path(directory / "train", name)
                if name in texts and path:
                    yield _utterance(name, path, split, config, texts[name])
                else:
                    detail = "a handle without a transcript"
                    issues.add("no counterpart", split=split, item=name, detail=detail)


class MlsText(SentencesByLanguage):
    """Books in eight languages; a config is a language."""

    name = "mls_text"
    title = "the text of MLS' language models: a directory with mls_lm_german and so on"

    def text(self, line: str, language: str) -> str:
        """Normalises a line as transcripts are normalised."""
        return normalize(line, language)

    def files(self, source: Path) -> Mapping[str, Path]:
        """Returns the file of each language; see `SentencesByLanguage`."""
        files: dict[str, Path] = {}
        for code, directory in _directories(source, ["mls_lm_{}"]).items():
            for path in (directory / file for file in TEXT_FILES):
                if path.is_file():
                    files.setdefault(code, path)
        return files


def _directories(
    source: Path, patterns: Sequence[str] = ("mls_{}", "mls_{}_opus")
) -> dict[str, Path]:
    """Returns the directory of each available language, which may be `source` itself."""
    directories: dict[str, Path] = {}
    for language, code in LANGUAGES.items():
        for pattern in patterns:
            name = pattern.format(language)
            path = source if source.name == name else source / name
            if path.is_dir():
                directories.setdefault(code, path)
    return directories


def _read_transcripts(folder: Path, split: str, issues: IssueLog) -> Iterator[tuple[str, str, str]]:
    """Yields `file:line`, id and text of every line."""
    path, segments = folder / "transcripts.txt", folder / "segments.txt"
    for place, row in tables.rows(path, issues, columns=("id", "text"), split=split):
        yield place, row["id"].strip(), row["text"]
    # Only `segments.txt` tells a truncated transcript file from a complete one.
    if segments.is_file() and _count(segments) != _count(path):
        detail = f"{_count(path)} lines for {_count(segments)} of {segments}"
        issues.add("no counterpart", split=split, item=path.name, detail=detail)


def _count(path: Path) -> int:
    return sum(1 for _, line in tables.lines(path) if line.strip())


def _read_handles(directory: Path) -> dict[str, list[str]]:
    """Returns the ids of each available split of the ten hours."""
    root = directory / "train" / "limited_supervision"
    parts = [f"1hr/{fold}" for fold in range(6)] + ["9hr"]
    return {
        split: [line.strip() for _, line in tables.lines(path) if line.strip()]
        for split, part in zip(LIMITED_SPLITS, parts, strict=True)
        if (path := root / part / "handles.txt").is_file()
    }


def _audio_path(folder: Path, name: str) -> Path | None:
    """Returns the audio file of an id, or None if the id is not a valid one."""
    match name.split("_"):
        case [speaker, book, segment] if speaker and book and segment:
            suffix = ".opus" if folder.parent.name.endswith("_opus") else ".flac"
            return folder / "audio" / speaker / book / (name + suffix)
    return None


def _utterance(name: str, audio: Path, split: str, language: str, raw_text: str) -> Utterance:
    return Utterance(
        id=name,
        split=split,
        language=language,
        audio=str(audio),
        text=normalize(raw_text, language),
        raw_text=raw_text,
        speaker=name.split("_")[0],
        required=("text",),
    )
