"""VoxPopuli: speeches of the European Parliament, transcribed and not, and text.

Transcribed speech (`VoxPopuli`, 16 languages and accented English) and unlabelled speech
(`VoxPopuliUnlabelled`, 400 thousand hours in 23 languages) are read in two layouts; if a language
has both, in the first one:

- segmented by the project's scripts: `transcribed_data/<config>/asr_{train,dev,test}.tsv` with
  `transcribed_data/<config>/<year>/<id>.ogg`, and `unlabelled_data/<language>/<year>/<id>.ogg`;
- raw, as downloaded: `asr_<config>.tsv.gz`, with pipes between its columns, lists pieces of
  `raw_audios/original/<year>/<session>_original.ogg`. `unlabelled_v2.tsv.gz` lists pieces of
  `raw_audios/<language>/<year>/<event>.ogg`, and `unlabelled_sd.tsv.gz`, with pipes between its
  columns, other pieces of the same files, which end where the speaker changes.

Transcribed speech is also read from Parquet files with audio inside, as mirrors on the Hugging Face
hub have them: `de/test-00000-of-00001.parquet`, see `maestro_jax.data.corpora.parquet`.

An event is `20190114-0900-PLENARY_de`: date, time, kind and language. The project's
`get_unlabelled_data.py` says which events belong to which subset.

Text (`VoxPopuliText`) is `lm_data/<language>/sentences.txt`, which the project's `get_lm_data.py`
writes: the transcripts and Europarl, one sentence per line, in lower case, without punctuation and
with numbers in words. It is the unspoken text of MAESTRO's multilingual experiments (VP-T).

Source: Wang et al. (2021), "VoxPopuli: A Large-Scale Multilingual Speech Corpus for Representation
Learning, Semi-Supervised Learning and Interpretation".
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from maestro_jax.data.corpora import parquet, tables
from maestro_jax.data.corpora.corpus import Corpus, Embedded, Span, Utterance, select
from maestro_jax.data.corpora.issues import IssueLog
from maestro_jax.data.corpora.text_files import SentencesByLanguage
from maestro_jax.errors import UserError

LANGUAGES: tuple[str, ...] = (
    *("en", "de", "fr", "es", "pl", "it", "ro", "hu", "cs", "nl", "fi", "hr", "sk", "sl"),
    *("et", "lt"),
)
"""The transcribed languages."""
AVERAGED_LANGUAGES: tuple[str, ...] = tuple(
    language for language in LANGUAGES if language not in ("et", "lt")
)
"""The 14 languages over which papers average their error rates; the other two have 5 hours."""
UNLABELLED_LANGUAGES: tuple[str, ...] = (*LANGUAGES, "pt", "bg", "el", "lv", "mt", "sv", "da")
"""The languages with unlabelled speech."""

ACCENTED: dict[str, str] = {"en_accented": "en"}
"""Language of each config with non-native speakers; it has a test set only."""

SUBSETS: tuple[str, ...] = ("10k", "100k", "400k")
"""Subsets of the unlabelled speech, each contained in the next."""
SPEAKER_TURNS = "10k_sd"
"""The subset `10k` with other segments, which end where the speaker changes."""

SPLITS = {"train": "train", "dev": "validation", "test": "test"}
# What rows that the corpus itself marks as unusable have in place of a split.
_INVALID_SPLITS = ("invalid", "None")

_EVENT = re.compile(r"\d{8}.*_[a-z]{2}")
_FIRST_DAY, _DAY_AFTER = 20190101, 20200801  # Of the smallest subset.
_AUDIO_SUFFIXES = (".ogg", ".opus", ".flac", ".wav", ".mp3")


class VoxPopuli(Corpus):
    """Transcribed speech; a config is a language or `en_accented`.

    Texts are the published normalised ones, unchanged, on which error rates are computed.
    """

    name = "voxpopuli"
    title = (
        "VoxPopuli: transcribed_data, or asr_<language>.tsv.gz and raw_audios/original, or Parquet "
        "files in a directory per language"
    )
    columns: Mapping[str, str]

    def __init__(self) -> None:
        self.columns = {}

    def configs(self, source: Path, languages: Sequence[str] = ()) -> list[str]:
        """Lists the languages that have a table; see `Corpus`."""
        available = [
            config
            for config in (*LANGUAGES, *ACCENTED)
            if _segmented_tables(source, config)
            or _raw_table(source, config)
            or config in _parquet(source)
        ]
        return select(available, languages, source, "transcribed languages")

    def utterances(self, source: Path, config: str, issues: IssueLog) -> Iterator[Utterance]:
        """Yields the rows of train, dev and test, or of the raw table; see `Corpus`."""
        segmented = _segmented_tables(source, config)
        if not segmented and not _raw_table(source, config):
            yield from self._parquet_utterances(_parquet(source)[config], config, issues)
            return
        if not segmented:
            yield from _raw_utterances(source, config, issues)
            return
        for part, split in SPLITS.items():
            if part in segmented:
                yield from _segmented_utterances(segmented[part], config, split, issues)
            elif config in LANGUAGES:
                issues.add("missing table", split=split, item=f"asr_{part}.tsv")

    def _parquet_utterances(
        self, directory: Path, config: str, issues: IssueLog
    ) -> Iterator[Utterance]:
        # Mirrors name the column of normalised text as the corpus does.
        columns = {"text": "normalized_text", **self.columns}
        for row in parquet.read_rows(directory, columns, required=("audio", "text")):
            if row.lacks_audio:
                issues.add("missing audio", split=row.split, item=row.place)
                continue
            yield _utterance(
                row.fields.get("id") or row.place,
                config,
                row.split,
                audio=row.audio,
                embedded=row.embedded,
                text=row.fields["text"],
                raw_text=row.fields.get("raw_text", ""),
                speaker=row.fields.get("speaker", ""),
            )


def _parquet(source: Path) -> dict[str, Path]:
    """Returns the directory of the Parquet files of each config."""
    return parquet.split_directories(source, lambda name: name in (*LANGUAGES, *ACCENTED))


def _find_table(source: Path, name: str, *directories: str) -> Path | None:
    """Returns an annotation table, gzipped or not, in one of some directories or in `source`."""
    for directory in (*directories, "."):
        for suffix in (".tsv.gz", ".tsv"):
            if (path := source / directory / f"{name}{suffix}").is_file():
                return path
    return None


def _segmented_tables(source: Path, config: str) -> dict[str, Path]:
    directory = source / "transcribed_data" / config
    paths = {part: directory / f"asr_{part}.tsv" for part in SPLITS}
    return {part: path for part, path in paths.items() if path.is_file()}


def _raw_table(source: Path, config: str) -> Path | None:
    return _find_table(source, f"asr_{config}", f"transcribed_data/{config}", "annotations/asr")


def _segmented_utterances(
    path: Path, config: str, split: str, issues: IssueLog
) -> Iterator[Utterance]:
    required = ("id", "normalized_text")
    for place, row in tables.rows(path, issues, required=required, split=split):
        name = row["id"].strip()
        if not name:
            issues.add("bad value", split=split, item=place, detail="no id")
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


def _raw_utterances(source: Path, config: str, issues: IssueLog) -> Iterator[Utterance]:
    path = _raw_table(source, config)
    assert path is not None, config
    required = ("session_id", "id_", "normed_text", "split", "vad")
    for _, row in tables.rows(path, issues, delimiter="|", required=required):
        session = row["session_id"]
        name = f"{session}-{row['id_']}"
        # The project's scripts skip such rows, whatever else they hold.
        if row["split"] in _INVALID_SPLITS:
            issues.add("set aside", item=name, detail=f"its split is {row['split']}")
            continue
        if row["split"] not in SPLITS:
            issues.add("unknown split", item=name, detail=row["split"])
            continue
        split = SPLITS[row["split"]]
        try:
            spans = _spans(row["vad"])
        except ValueError as error:
            issues.add("bad value", split=split, item=name, detail=f"vad: {error}")
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
    audio: Path | str,
    text: str,
    raw_text: str,
    speaker: str,
    spans: tuple[Span, ...] | None = None,
    embedded: Embedded | None = None,
) -> Utterance:
    return Utterance(
        id=name,
        split=split,
        language=ACCENTED.get(config, config),
        audio=str(audio),
        embedded=embedded,
        spans=spans,
        text=" ".join(text.split()),
        raw_text=raw_text.strip(),
        # The project's scripts write Python's None where the speaker is unknown.
        speaker="" if speaker.strip() == "None" else speaker.strip(),
        required=("text",),
    )


def _spans(literal: str) -> tuple[Span, ...]:
    """Parses the stretches of speech that make up an utterance.

    Args:
        literal: Python literal of a list of pairs of seconds.

    Raises:
        ValueError: It is no such literal, or a pair is not a span of time.
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


class VoxPopuliText(SentencesByLanguage):
    """Unspoken text; a config is a language. Sentences that occur more than once are kept."""

    name = "voxpopuli_text"
    title = "VoxPopuli text: lm_data/<language>/sentences.txt"

    def files(self, source: Path) -> Mapping[str, Path]:
        """Returns the sentences of each language; see `SentencesByLanguage`."""
        paths = {
            language: source / "lm_data" / language / "sentences.txt" for language in LANGUAGES
        }
        return {language: path for language, path in paths.items() if path.is_file()}


class VoxPopuliUnlabelled(Corpus):
    """Unlabelled speech; a config is a subset and a language, as `100k_de`.

    `--languages de` requests the smallest subset with all available audio of a language.
    """

    name = "voxpopuli_unlabelled"
    title = "VoxPopuli unlabelled: unlabelled_data, or unlabelled_v2.tsv.gz and raw_audios"
    splits = ("train",)

    def configs(self, source: Path, languages: Sequence[str] = ()) -> list[str]:
        """Lists the subsets of the languages that have audio; see `Corpus`."""
        available = [
            language for language in UNLABELLED_LANGUAGES if _audio_directory(source, language)
        ]
        configs: dict[str, None] = {}
        for name in languages or available:
            subset, _, language = name.rpartition("_")
            if subset and subset not in (*SUBSETS, SPEAKER_TURNS):
                raise UserError(
                    f"there is no subset {subset!r} of VoxPopuli's unlabelled speech; there are "
                    f"{', '.join((*SUBSETS, SPEAKER_TURNS))}, as in 100k_{language}."
                )
            select(available, [language], source, "languages with unlabelled speech")
            configs[name if subset else f"{_smallest_subset(source, language)}_{language}"] = None
        return list(configs) or select(available, [], source, "languages with unlabelled speech")

    def utterances(self, source: Path, config: str, issues: IssueLog) -> Iterator[Utterance]:
        """Yields the segments by year and name, or in the order of the table; see `Corpus`."""
        subset, language = config.rsplit("_", 1)
        if subset != SPEAKER_TURNS and (source / "unlabelled_data" / language).is_dir():
            yield from _segmented_speech(source, subset, language, issues)
        else:
            yield from _raw_speech(source, subset, language, issues)


def is_in_subset(event: str, subset: str) -> bool:
    """Returns whether an event belongs to a subset.

    Args:
        event: Name of the event, which begins with its date.
        subset: One of `SUBSETS`, or `SPEAKER_TURNS`.
    """
    if subset == "400k":
        return True
    if "PLENARY" not in event:
        return False
    return subset == "100k" or _FIRST_DAY <= int(event[:8]) < _DAY_AFTER


def _audio_directory(source: Path, language: str) -> Path | None:
    """Returns the directory with the audio of a language, segmented or raw."""
    for parent in ("unlabelled_data", "raw_audios"):
        if (directory := source / parent / language).is_dir():
            return directory
    return None


def _smallest_subset(source: Path, language: str) -> str:
    directory = _audio_directory(source, language)
    assert directory is not None, language
    segmented = directory.parent.name == "unlabelled_data"
    names = {_event_of(path) if segmented else path.stem for path in _audio_files(directory)}
    events = [name for name in names if _EVENT.fullmatch(name)]
    return next(name for name in SUBSETS if all(is_in_subset(event, name) for event in events))


def _audio_files(directory: Path) -> Iterator[Path]:
    """Yields all audio files of a language, by year and name."""
    for year in sorted(path for path in directory.iterdir() if path.is_dir()):
        yield from sorted(path for path in year.iterdir() if path.suffix in _AUDIO_SUFFIXES)


def _event_of(path: Path) -> str:
    return path.stem.rpartition("_")[0]


def _segmented_speech(
    source: Path, subset: str, language: str, issues: IssueLog
) -> Iterator[Utterance]:
    directory = source / "unlabelled_data" / language
    for path in _audio_files(directory):
        event = _event_of(path)
        if not _EVENT.fullmatch(event):
            _add_no_event(issues, f"{path.parent.name}/{path.name}")
        elif is_in_subset(event, subset):
            yield Utterance(id=path.stem, split="train", language=language, audio=str(path))


def _raw_speech(source: Path, subset: str, language: str, issues: IssueLog) -> Iterator[Utterance]:
    if subset == SPEAKER_TURNS:
        table, delimiter = "unlabelled_sd", "|"
        columns = ("session_id", "id_", "start_time", "end_time")
    else:
        table, delimiter = "unlabelled_v2", "\t"
        columns = ("event_id", "segment_no", "start", "end")
    path = _find_table(source, table, "unlabelled_data", "annotations")
    if path is None:
        raise UserError(
            f"there is no {table}.tsv.gz in {source}; download it: it lists the segments."
        )
    rows = tables.rows(path, issues, delimiter=delimiter, required=columns, split="train")
    suffix = f"_{language}"
    for place, row in rows:
        event, segment, begin, end = (row[column] for column in columns)
        if not _EVENT.fullmatch(event):
            _add_no_event(issues, place)
            continue
        # One table lists the segments of all languages and subsets.
        if not (event.endswith(suffix) and is_in_subset(event, subset)):
            continue
        try:
            span = (float(begin), float(end))
        except ValueError:
            span = (math.nan, math.nan)
        if not (0 <= span[0] < span[1] < math.inf):
            detail = f"from {begin} to {end} seconds"
            issues.add("bad value", split="train", item=f"{event}_{segment}", detail=detail)
            continue
        yield Utterance(
            id=f"{event}_{segment}",
            split="train",
            language=language,
            audio=str(source / "raw_audios" / language / event[:4] / f"{event}.ogg"),
            spans=(span,),
        )


def _add_no_event(issues: IssueLog, item: str) -> None:
    issues.add("bad value", split="train", item=item, detail="no date and language")
