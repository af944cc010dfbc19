"""Multilingual LibriSpeech (Pratap et al., 2020): `mls_german` or `mls_german_opus`, and so on.

`train`, `dev` and `test` each hold `transcripts.txt` (id, tab, text), `segments.txt` (id, and where
in which book's audio it begins and ends) and `audio/<speaker>/<book>/<id>.flac` or `.opus`, where
an id is `<speaker>_<book>_<segment>`. `train/limited_supervision` lists the ids of ten hours:
`9hr/handles.txt`, and six folds of ten minutes, `1hr/<fold>/handles.txt`.

Transcripts are published in lower case, with the hyphens of French and Portuguese (`est-ce`). They
are normalised by VoxPopuli's rules (`est ce`), for the paper trains both corpora together, and a
model should not have to guess which of them it hears.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from maestro_jax.data.corpora import limited, tables
from maestro_jax.data.corpora.corpus import Corpus, Published, choose
from maestro_jax.data.corpora.problems import Problems
from maestro_jax.data.corpora.utterance import Utterance
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

# Hours: the paper. Utterances: the cards of the data set.
_HOURS = {
    "en": (44_659.74, 15.75, 15.55),
    "de": (1_966.51, 14.28, 14.29),
    "nl": (1_554.24, 12.76, 12.76),
    "fr": (1_076.58, 10.07, 10.07),
    "es": (917.68, 9.99, 10.0),
    "it": (247.38, 5.18, 5.27),
    "pt": (160.96, 3.64, 3.74),
    "pl": (103.65, 2.08, 2.14),
}
_UTTERANCES = {
    "en": (10_808_037, 3_807, 3_769),
    "de": (469_942, 3_469, 3_394),
    "nl": (374_287, 3_095, 3_075),
    "fr": (258_213, 2_416, 2_426),
    "es": (220_701, 2_408, 2_385),
    "it": (59_623, 1_248, 1_262),
    "pt": (37_533, 826, 871),
    "pl": (25_043, 512, 520),
}


class Mls(Corpus):
    """Audio books in eight languages; a config is a language.

    Where a language is there both as flac and as opus, flac is read: opus has lost something.
    """

    name = "mls"
    title = "Multilingual LibriSpeech: a directory with mls_german, mls_polish_opus and so on"
    splits = ("train", "validation", "test", *limited.SPLITS)

    def configs(self, source: Path, languages: Sequence[str] = ()) -> list[str]:
        """The languages; see `Corpus`."""
        return choose(list(_directories(source)), languages, source, "languages of MLS")

    def utterances(self, source: Path, config: str, problems: Problems) -> Iterator[Utterance]:
        """The lines of the transcript files, then those of the ten hours; see `Corpus`."""
        directory = _directories(source)[config]
        splits = [split for split, folder in FOLDERS.items() if (directory / folder).is_dir()]
        if not splits:
            raise UserError(f"{directory} has no train, dev or test; name the directory above it.")
        handles = _handles(directory)
        wanted = {name for names in handles.values() for name in names}
        texts: dict[str, str] = {}
        for split in splits:
            folder = directory / FOLDERS[split]
            for place, name, raw_text in _transcripts(folder, split, problems):
                if split == "train" and name in wanted:
                    texts.setdefault(name, raw_text)
                if path := _audio(folder, name):
                    yield _utterance(name, path, split, config, raw_text)
                else:
                    detail = f"{name} is not <speaker>_<book>_<segment>"
                    problems.add("bad value", split=split, item=place, detail=detail)
        for split, names in handles.items():
            for name in names:
                path = _audio(directory / "train", name)
                if name in texts and path:
                    yield _utterance(name, path, split, config, texts[name])
                else:
                    detail = "a handle without a transcript"
                    problems.add("no counterpart", split=split, item=name, detail=detail)

    def published(self, source: Path, config: str) -> Mapping[str, Published]:
        """See `Corpus`."""
        del source
        sizes = zip(_UTTERANCES[config], _HOURS[config], strict=True)
        return {split: Published(*size) for split, size in zip(FOLDERS, sizes, strict=True)}


def _directories(source: Path) -> dict[str, Path]:
    """The directory of every language that is there; the source itself may be one."""
    found: dict[str, Path] = {}
    for language, code in LANGUAGES.items():
        for name in (f"mls_{language}", f"mls_{language}_opus"):
            path = source if source.name == name else source / name
            if path.is_dir():
                found.setdefault(code, path)
    return found


def _transcripts(folder: Path, split: str, problems: Problems) -> Iterator[tuple[str, str, str]]:
    """Place, id and text of every line."""
    path, segments = folder / "transcripts.txt", folder / "segments.txt"
    for place, row in tables.rows(path, problems, columns=("id", "text"), split=split):
        yield place, row["id"].strip(), row["text"]
    # A transcript file that ends early looks like one of a smaller corpus.
    if segments.is_file() and _count(segments) != _count(path):
        detail = f"{_count(path)} lines for {_count(segments)} of {segments}"
        problems.add("no counterpart", split=split, item=path.name, detail=detail)


def _count(path: Path) -> int:
    return sum(1 for _, line in tables.lines(path) if line.strip())


def _handles(directory: Path) -> dict[str, list[str]]:
    """The ids of each split of the ten hours that is there."""
    root = directory / "train" / "limited_supervision"
    parts = [f"1hr/{fold}" for fold in range(6)] + ["9hr"]
    return {
        split: [line.strip() for _, line in tables.lines(path) if line.strip()]
        for split, part in zip(limited.SPLITS, parts, strict=True)
        if (path := root / part / "handles.txt").is_file()
    }


def _audio(folder: Path, name: str) -> Path | None:
    """Where the audio of an id is; None if it is no id."""
    match name.split("_"):
        case [speaker, book, segment] if speaker and book and segment:
            ending = ".opus" if folder.parent.name.endswith("_opus") else ".flac"
            return folder / "audio" / speaker / book / (name + ending)
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
        needs=("text",),
    )
