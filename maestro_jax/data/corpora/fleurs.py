"""FLEURS (Conneau et al., 2022): sentences of FLoRes, read aloud in 102 languages.

    de_de/{train,dev,test}.tsv
    de_de/audio/{train,dev,test}/*.wav

The tables have no header. Their columns are the number of the sentence, the file, the transcript,
the same without case and punctuation, its characters, how many samples the file has, and gender.

Several people read a sentence, all of them under its number.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from maestro_jax.data.corpora import tables
from maestro_jax.data.corpora.corpus import Corpus, Published, choose_languages
from maestro_jax.data.corpora.fleurs_sizes import SIZES
from maestro_jax.data.corpora.problems import Problems
from maestro_jax.data.corpora.utterance import Utterance
from maestro_jax.errors import UserError
from maestro_jax.text.normalizers import base_language

COLUMNS = (
    "number",
    "file",
    "raw_transcription",
    "transcription",
    "characters",
    "num_samples",
    "gender",
)
FILES = {"train": "train", "validation": "dev", "test": "test"}
# Mandarin is what ISO 639-1 calls Chinese, and Filipino is Tagalog as it is standardised.
_OTHER_CODES = {"cmn": "zh", "fil": "tl"}


class Fleurs(Corpus):
    """FLEURS; a config is a language."""

    name = "fleurs"
    title = "FLEURS: directories like de_de with train.tsv, dev.tsv, test.tsv and audio/train/*.wav"

    def configs(self, source: Path, languages: Sequence[str] = ()) -> list[str]:
        """The languages of the directories; see `Corpus`."""
        wanted = [_language(name) for name in languages]
        return choose_languages(list(_directories(source)), wanted, source)

    def utterances(self, source: Path, config: str, problems: Problems) -> Iterator[Utterance]:
        """The recordings of a language, table by table; see `Corpus`."""
        directory = _directories(source)[config]
        for split, name in FILES.items():
            table = directory / f"{name}.tsv"
            if not table.is_file():
                raise UserError(f"{table} is not there; unpack all of {directory.name}.")
            recordings = directory / "audio" / name
            if not recordings.is_dir():
                raise UserError(f"there is no directory {recordings}; unpack {name}.tar.gz there.")
            for place, row in tables.rows(table, problems, columns=COLUMNS, split=split):
                file = PurePosixPath(row["file"].strip()).name
                if not file:
                    problems.add("bad value", split=split, item=place, detail="no file")
                    continue
                yield Utterance(
                    # The number says which sentence it is, in every language; the file, which
                    # recording of it.
                    id=f"{row['number']}-{PurePosixPath(file).stem}",
                    split=split,
                    language=config,
                    audio=str(recordings / file),
                    # Normalised by the corpus, whose error rates are those of this column.
                    text=" ".join(row["transcription"].split()),
                    raw_text=row["raw_transcription"].strip(),
                    needs=("text",),
                )

    def published(self, source: Path, config: str) -> Mapping[str, Published]:
        """Rows of the tables; hours are about 10 for training everywhere."""
        del source
        return dict(zip(FILES, map(Published, SIZES.get(config, ())), strict=False))


def _language(name: str) -> str:
    """The language of a directory such as `cmn_hans_cn`."""
    code = base_language(name)
    return _OTHER_CODES.get(code, code)


def _directories(source: Path) -> dict[str, Path]:
    """The directory of each language, below the corpus or below its `data`."""
    found: dict[str, Path] = {}
    for root in (source, source / "data"):
        for table in sorted(root.glob("*/train.tsv")):
            found.setdefault(_language(table.parent.name), table.parent)
    # A directory of one language may be named by itself.
    if not found and (source / "train.tsv").is_file():
        found[_language(source.name)] = source
    return found
