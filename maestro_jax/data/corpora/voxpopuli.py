"""VoxPopuli's transcribed speech: European Parliament in 16 languages, and accented English.

Two layouts are read, the first of them if both are there:

- cut by the project's scripts: `transcribed_data/<config>/asr_{train,dev,test}.tsv`, whose rows
  belong to `transcribed_data/<config>/<year>/<id>.ogg`;
- raw, as downloaded: `asr_<config>.tsv.gz` with pipes between its columns, whose rows are pieces
  of `raw_audios/original/<year>/<session>_original.ogg`.

Source: Wang et al., 2021, "VoxPopuli: A Large-Scale Multilingual Speech Corpus for Representation
Learning, Semi-Supervised Learning and Interpretation"; the hours are those of its repository.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from maestro_jax.data.corpora import tables
from maestro_jax.data.corpora.corpus import WHOLE, Corpus, Published, choose
from maestro_jax.data.corpora.problems import Problems
from maestro_jax.data.corpora.utterance import Span, Utterance

HOURS: dict[str, float] = {
    "en": 543, "de": 282, "fr": 211, "es": 166, "pl": 111, "it": 91, "ro": 89, "hu": 63,
    "cs": 62, "nl": 53, "fi": 27, "hr": 43, "sk": 35, "sl": 10, "et": 3, "lt": 2,
}  # fmt: skip
"""Transcribed hours by language, all splits together."""
LANGUAGES: tuple[str, ...] = tuple(HOURS)
PAPERS: tuple[str, ...] = tuple(language for language in HOURS if language not in ("et", "lt"))
"""The 14 languages with enough speech, over which papers average their error rates."""

ACCENTED: dict[str, str] = {"en_accented": "en"}
"""Configs that have a test set only, and their language: speakers whose language is another one."""
ACCENTED_HOURS: dict[str, float] = {
    "en_accented": 3.52 + 3.52 + 3.30 + 3.23 + 2.56 + 2.33 + 2.18 + 1.85
    + 1.46 + 1.42 + 1.11 + 1.08 + 0.65 + 0.42 + 0.25,
}  # fmt: skip
"""The sum over the 15 accents."""

SPLITS = {"train": "train", "dev": "validation", "test": "test"}
INVALID = ("invalid", "None")
"""In the place of a split: rows that the corpus gives up itself."""


class VoxPopuli(Corpus):
    """Transcribed speech; a config is a language or `en_accented`.

    Texts are the published normalised ones, unchanged: they are what error rates are computed on.
    """

    name = "voxpopuli"
    title = "VoxPopuli: transcribed_data, or asr_<language>.tsv.gz and raw_audios/original"

    def configs(self, source: Path, languages: Sequence[str] = ()) -> list[str]:
        """The languages that have a table; see `Corpus`."""
        there = [
            config
            for config in (*LANGUAGES, *ACCENTED)
            if _cut_tables(source, config) or _raw_table(source, config)
        ]
        return choose(there, languages, source, "transcribed languages")

    def utterances(self, source: Path, config: str, problems: Problems) -> Iterator[Utterance]:
        """Train, dev and test in turn, or the raw table in its order; see `Corpus`."""
        cut = _cut_tables(source, config)
        if not cut:
            yield from _raw_utterances(source, config, problems)
            return
        for part, split in SPLITS.items():
            if part in cut:
                yield from _cut_utterances(cut[part], config, split, problems)
            elif config in LANGUAGES:
                problems.add("missing table", split=split, item=f"asr_{part}.tsv")

    def published(self, source: Path, config: str) -> Mapping[str, Published]:
        """Hours of all splits together; utterances are not published."""
        del source
        if config in ACCENTED_HOURS:
            return {"test": Published(hours=round(ACCENTED_HOURS[config], 2))}
        return {WHOLE: Published(hours=HOURS[config])}


def find_table(source: Path, name: str, *directories: str) -> Path | None:
    """An annotation table of VoxPopuli, gzipped or not.

    Args:
        source: The directory of the corpus.
        name: Of the table, without `.tsv`.
        directories: Below it, where the project's scripts and its download site keep the table;
            it may also lie in the directory of the corpus itself.
    """
    for directory in (*directories, "."):
        for ending in (".tsv.gz", ".tsv"):
            if (path := source / directory / f"{name}{ending}").is_file():
                return path
    return None


def _cut_tables(source: Path, config: str) -> dict[str, Path]:
    directory = source / "transcribed_data" / config
    found = {part: directory / f"asr_{part}.tsv" for part in SPLITS}
    return {part: path for part, path in found.items() if path.is_file()}


def _raw_table(source: Path, config: str) -> Path | None:
    return find_table(source, f"asr_{config}", f"transcribed_data/{config}", "annotations/asr")


def _cut_utterances(path: Path, config: str, split: str, problems: Problems) -> Iterator[Utterance]:
    required = ("id", "normalized_text")
    for place, row in tables.rows(path, problems, required=required, split=split):
        name = row["id"].strip()
        if not name:
            problems.add("bad value", split=split, item=place, detail="no id")
            continue
        yield _utterance(
            name,
            config,
            split,
            audio=path.parent / name[:4] / f"{name}.ogg",
            text=row["normalized_text"],
            raw_text=row.get("raw_text", ""),
            speaker=row.get("speaker_id", ""),
        )


def _raw_utterances(source: Path, config: str, problems: Problems) -> Iterator[Utterance]:
    path = _raw_table(source, config)
    assert path is not None, config
    required = ("session_id", "id_", "normed_text", "split", "vad")
    for _, row in tables.rows(path, problems, delimiter="|", required=required):
        session = row["session_id"]
        name = f"{session}-{row['id_']}"
        # The project's scripts pass over such rows, and do not look at the rest of them.
        if row["split"] in INVALID:
            problems.add("set aside", item=name, detail=f"its split is {row['split']}")
            continue
        if row["split"] not in SPLITS:
            problems.add("unknown split", item=name, detail=row["split"])
            continue
        split = SPLITS[row["split"]]
        try:
            spans = _spans(row["vad"])
        except ValueError as error:
            problems.add("bad value", split=split, item=name, detail=f"vad: {error}")
            continue
        yield _utterance(
            name,
            config,
            split,
            audio=source / "raw_audios" / "original" / session[:4] / f"{session}_original.ogg",
            spans=spans,
            text=row["normed_text"],
            raw_text=row.get("original_text", ""),
            speaker=row.get("speaker_id", ""),
        )


def _utterance(
    name: str,
    config: str,
    split: str,
    *,
    audio: Path,
    text: str,
    raw_text: str,
    speaker: str,
    spans: tuple[Span, ...] | None = None,
) -> Utterance:
    return Utterance(
        id=name,
        split=split,
        language=ACCENTED.get(config, config),
        audio=str(audio),
        spans=spans,
        text=" ".join(text.split()),
        raw_text=raw_text.strip(),
        # The project's scripts write what Python calls nothing.
        speaker="" if speaker.strip() == "None" else speaker.strip(),
        needs=("text",),
    )


def _spans(literal: str) -> tuple[Span, ...]:
    """The pieces of a session with speech in them, which put together are the utterance.

    Args:
        literal: A list of pairs of seconds, as Python writes it.

    Raises:
        ValueError: It is none, or a piece of it is none.
    """
    try:
        pieces = [(float(begin), float(end)) for begin, end in ast.literal_eval(literal.strip())]
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as error:
        raise ValueError(f"no list of pairs of seconds: {literal[:80]}") from error
    if not pieces:
        raise ValueError("no pieces")
    for begin, end in pieces:
        if not (0 <= begin < end < math.inf):
            raise ValueError(f"a piece from {begin} to {end} seconds")
    return tuple(pieces)
