"""FLEURS (Conneau et al., 2022): sentences of FLoRes read aloud in 102 languages.

    de_de/{train,dev,test}.tsv
    de_de/audio/{train,dev,test}/*.wav

The tables have no header; `COLUMNS` names their columns. Several people read each sentence, and all
of their recordings have its number.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from maestro_jax.data.corpora import tables
from maestro_jax.data.corpora.corpus import Corpus, Utterance, select_languages
from maestro_jax.data.corpora.issues import IssueLog
from maestro_jax.errors import UserError
from maestro_jax.text.normalizers import base_language

COLUMNS = (
    "number",
    "file",
    "raw_transcription",
    "transcription",  # Without case and punctuation.
    "characters",
    "num_samples",
    "gender",
)
FILES = {"train": "train", "validation": "dev", "test": "test"}
# ISO 639-1 has no codes of their own for Mandarin and for Filipino, the standardised Tagalog.
_ISO_CODES = {"cmn": "zh", "fil": "tl"}


class Fleurs(Corpus):
    """FLEURS; a config is a language."""

    name = "fleurs"
    title = "FLEURS: directories like de_de with train.tsv, dev.tsv, test.tsv and audio/train/*.wav"

    def configs(self, source: Path, languages: Sequence[str] = ()) -> list[str]:
        """Lists the languages of the directories; see `Corpus`."""
        requested = [_language(name) for name in languages]
        return select_languages(list(_directories(source)), requested, source)

    def utterances(self, source: Path, config: str, issues: IssueLog) -> Iterator[Utterance]:
        """Yields the recordings of a language, table by table; see `Corpus`."""
        directory = _directories(source)[config]
        for split, name in FILES.items():
            table = directory / f"{name}.tsv"
            if not table.is_file():
                raise UserError(f"there is no table {table}; unpack all of {directory.name}.")
            recordings = directory / "audio" / name
            if not recordings.is_dir():
                raise UserError(f"there is no directory {recordings}; unpack {name}.tar.gz there.")
            for place, row in tables.rows(table, issues, columns=COLUMNS, split=split):
                file = PurePosixPath(row["file"].strip()).name
                if not file:
                    issues.add("bad value", split=split, item=place, detail="no file")
                    continue
                yield Utterance(
                    # The number identifies the sentence, in all languages, and the file the
                    # recording.
                    id=f"{row['number']}-{PurePosixPath(file).stem}",
                    split=split,
                    language=config,
                    audio=str(recordings / file),
                    # The corpus' own normalisation, on which published error rates are computed.
                    text=" ".join(row["transcription"].split()),
                    raw_text=row["raw_transcription"].strip(),
                    required=("text",),
                )


def _language(name: str) -> str:
    """Returns the language of a directory such as `cmn_hans_cn`."""
    code = base_language(name)
    return _ISO_CODES.get(code, code)


def _directories(source: Path) -> dict[str, Path]:
    """Returns the directory of each language, below `source`, `source/data`, or `source` itself."""
    directories: dict[str, Path] = {}
    for root in (source, source / "data"):
        for table in sorted(root.glob("*/train.tsv")):
            directories.setdefault(_language(table.parent.name), table.parent)
    if not directories and (source / "train.tsv").is_file():
        directories[_language(source.name)] = source
    return directories
