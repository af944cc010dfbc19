"""Data sets as Parquet files with their audio inside, as the Hugging Face hub has them.

A directory holds the files of each split, `test-00000-of-00002.parquet` or `test/0000.parquet`; of
several languages, in a directory per language (`de`) or pair of languages (`de_en`). Also
`data/test-00000-of-00002.parquet` and `de_en/partial-train/0000.parquet`, as the hub converts what
is large, are found.

A column of audio has the bytes of a file, a path, or both (`{bytes, path}`), in any container that
`maestro_jax.audio.reading` reads. The columns are those of `COLUMNS` that are there, unless
`--columns text=sentence` names another. Languages may be numbers, if the file names them, as data
sets with class labels do.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from maestro_jax.data.corpora.corpus import Corpus, Embedded, Utterance, select_languages
from maestro_jax.data.corpora.issues import IssueLog
from maestro_jax.errors import UserError, near_misses
from maestro_jax.text.languages import (
    base_language,
    config_language,
    config_name,
    is_language,
    normalize_language,
)
from maestro_jax.text.normalizers import find_rules

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "audio": ("audio", "audio_filepath", "speech"),
    "text": ("text", "sentence", "transcription", "transcript", "normalized_text"),
    "raw_text": ("raw_text", "raw_transcription"),
    "translation": ("translation",),
    "language": ("language", "lang", "locale"),
    "id": ("id", "audio_id", "utterance_id", "file", "path"),
    "speaker": ("speaker", "speaker_id", "client_id"),
}
"""The names of a column by the field of the utterance, the first that is there counts."""

_SPLITS = {
    **{"train": "train", "training": "train"},
    **{"validation": "validation", "valid": "validation", "dev": "validation"},
    "test": "test",
}
_SPLIT = re.compile(rf"(?:partial-)?({'|'.join(_SPLITS)})(?:[-.]\d[\w.-]*)?")
_ROWS_AT_ONCE = 1024
# Rows with audio are large.
_RECORDINGS_AT_ONCE = 16


def split_files(directory: Path) -> dict[str, list[Path]]:
    """Returns the Parquet files of each split in a directory, in order.

    Args:
        directory: A directory with files, or with a directory per split, or one called `data`.

    Returns:
        From `train`, `validation`, `test` to paths; empty if there are none.
    """
    found: dict[str, list[Path]] = {}
    for path in sorted([*directory.glob("*.parquet"), *directory.glob("*/*.parquet")]):
        name = path.stem if path.parent in (directory, directory / "data") else path.parent.name
        if match := _SPLIT.fullmatch(name):
            found.setdefault(_SPLITS[match[1]], []).append(path)
    return found


def split_directories(source: Path, is_name: Callable[[str], bool]) -> dict[str, Path]:
    """Returns the directories that hold the Parquet files of splits, by their names.

    Args:
        source: The directory of all, which may also be that of one.
        is_name: Whether a directory's name is one to look into.
    """
    inside = [*source.iterdir(), *(source / "data").glob("*"), source]
    return {
        path.name: path
        for path in sorted(inside)
        if is_name(path.name) and path.is_dir() and split_files(path)
    }


@dataclasses.dataclass(frozen=True)
class ParquetRow:
    """A row of a Parquet file, without the bytes of its audio.

    Attributes:
        place: `file:row`, rows counted from 1.
        split: Split of the file.
        fields: Values by the fields of `COLUMNS` as text; empty for null and for what has no
            column.
        audio: Path of the audio, or of the Parquet file that it is in; empty if there is none.
        embedded: Where in the Parquet file the audio is; None if it is a file of its own.
        lacks_audio: Whether there is a column of audio, and nothing in it.
    """

    place: str
    split: str
    fields: Mapping[str, str]
    audio: str
    embedded: Embedded | None
    lacks_audio: bool = False


def read_rows(
    directory: Path,
    columns: Mapping[str, str] | None = None,
    *,
    required: Sequence[str] = ("audio",),
) -> Iterator[ParquetRow]:
    """Yields the rows of all splits of a directory, file by file.

    Args:
        directory: As of `split_files`.
        columns: Names of columns by field, where `COLUMNS` does not have them.
        required: Fields that the files must have.

    Raises:
        UserError: A file cannot be read, lacks a column, or has one of another type.
    """
    for split, paths in split_files(directory).items():
        for path in paths:
            yield from _file_rows(path, split, columns or {}, required)


def _file_rows(
    path: Path, split: str, columns: Mapping[str, str], required: Sequence[str]
) -> Iterator[ParquetRow]:
    import pyarrow as pa
    import pyarrow.types

    file = _opened(path)
    schema = file.schema_arrow
    names = _columns_of(path, schema.names, columns, required)
    labels = _labels(schema.metadata or {})
    audio = names.pop("audio", None)
    wanted = list(names.values())
    bytes_inside = has_paths = False
    if audio is not None:
        kind = schema.field(audio).type
        if pyarrow.types.is_struct(kind):
            inner = {kind.field(number).name for number in range(kind.num_fields)}
            bytes_inside, has_paths = "bytes" in inner, "path" in inner
        bytes_inside |= _is_binary(kind)
        if not (bytes_inside or has_paths or _is_string(kind)):
            raise UserError(
                f"the column {audio!r} of {path} is of type {kind}; audio is the bytes of a file, "
                "a path, or a structure of both (bytes, path). Name another: --columns audio=NAME."
            )
        # Paths alone: the bytes of a whole file of recordings do not fit into memory.
        wanted += [f"{audio}.path"] if has_paths else [audio] if _is_string(kind) else []
    try:
        number = 0
        batches = file.iter_batches(_ROWS_AT_ONCE, columns=wanted) if wanted else ()
        without = _without_bytes(path, audio) if audio is not None and bytes_inside else iter(())
        for batch in batches:
            for row in batch.to_pylist():
                number += 1
                place = f"{_label(path)}:{number}"
                fields = {
                    field: _text(row[name], labels.get(name)) for field, name in names.items()
                }
                found = row.get(audio) if audio is not None else None
                given = (found or {}).get("path") if isinstance(found, dict) else found
                has_bytes = not next(without, True)
                if not fields.get("id") and given:
                    fields["id"] = Path(given).stem
                where = str(path) if has_bytes else _beside(path, given)
                embedded = Embedded(audio or "", number - 1) if has_bytes else None
                lacks_audio = audio is not None and not where
                yield ParquetRow(place, split, fields, where, embedded, lacks_audio)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} cannot be read to its end ({error}); get it again.") from error


def _without_bytes(path: Path, column: str) -> Iterator[bool]:
    """Yields of each row whether it has no bytes of audio; usually without reading any."""
    import pyarrow.compute as pc

    file = _opened(path)
    binary = _is_binary(file.schema_arrow.field(column).type)
    name = column if binary else f"{column}.bytes"
    for number in range(file.metadata.num_row_groups):
        group = file.metadata.row_group(number)
        leaves = [group.column(leaf) for leaf in range(group.num_columns)]
        [statistics] = [leaf.statistics for leaf in leaves if leaf.path_in_schema == name]
        nulls = None
        if statistics is not None and statistics.has_null_count:
            nulls = statistics.null_count
        if nulls in (0, group.num_rows):
            yield from [nulls != 0] * group.num_rows
            continue
        for batch in file.iter_batches(_RECORDINGS_AT_ONCE, row_groups=[number], columns=[name]):
            values = batch.column(0) if binary else pc.struct_field(batch.column(0), "bytes")
            yield from pc.is_null(values).to_pylist()


def read_embedded(path: str, embedded: Embedded) -> bytes:
    """Returns the bytes of a recording in a Parquet file.

    Rows that are read in their order are read once each.

    Args:
        path: The Parquet file.
        embedded: Column and row of the recording.

    Raises:
        UserError: The file cannot be read.
    """
    import pyarrow as pa

    changed = Path(path).stat().st_mtime_ns
    try:
        return _cursor(path, changed, embedded.column).read(embedded.row)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} cannot be read ({error}); get it again.") from error


class _Cursor:
    """Reads the recordings of a file one after the other, a few at once.

    Row groups may be as large as the file, so that a group is not read as a whole.
    """

    def __init__(self, path: Path, column: str) -> None:
        self._file = _opened(path)
        self._is_binary = _is_binary(self._file.schema_arrow.field(column).type)
        self._column = column if self._is_binary else f"{column}.bytes"
        groups = self._file.metadata.num_row_groups
        sizes = [self._file.metadata.row_group(group).num_rows for group in range(groups)]
        self._starts = [sum(sizes[:group]) for group in range(groups)]
        self._batches: Iterator[Any] = iter(())
        # Rows of the batch at hand; nothing has been read yet, not even up to the first row.
        self._begin, self._end = 0, -1
        self._values: Any = None

    def read(self, row: int) -> bytes:
        """Returns the bytes of a row."""
        group = bisect.bisect_right(self._starts, row) - 1
        if row < self._begin or self._starts[group] > self._end:
            later = range(group, len(self._starts))
            self._batches = self._file.iter_batches(
                _RECORDINGS_AT_ONCE, row_groups=list(later), columns=[self._column]
            )
            self._begin = self._end = self._starts[group]
        while row >= self._end:
            batch = next(self._batches)
            self._begin, self._end = self._end, self._end + len(batch)
            self._values = batch.column(0)
        value = self._values[row - self._begin].as_py()
        return value if self._is_binary else value["bytes"]


@functools.lru_cache(maxsize=2)
def _cursor(path: str, changed: int, column: str) -> _Cursor:
    del changed
    return _Cursor(Path(path), column)


def _opened(path: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(path, buffer_size=1 << 20)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} is no Parquet file that can be read ({error}).") from error


def _is_binary(kind: Any) -> bool:
    import pyarrow.types

    return pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind)


def _is_string(kind: Any) -> bool:
    import pyarrow.types

    return pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)


def _columns_of(
    path: Path, present: Sequence[str], columns: Mapping[str, str], required: Sequence[str]
) -> dict[str, str]:
    """Returns the column of each field that has one."""
    names = {}
    for field, candidates in COLUMNS.items():
        if field in columns:
            if columns[field] not in present:
                raise UserError(
                    f"{path} has no column {columns[field]!r}; it has {', '.join(present)}."
                    f"{near_misses(columns[field], present)}"
                )
            names[field] = columns[field]
        elif name := next((name for name in candidates if name in present), None):
            names[field] = name
    for field in required:
        if field not in names:
            raise UserError(
                f"{path} has no column of {field} among {', '.join(present)}; name it: --columns "
                f"{field}=NAME."
            )
    return names


def _labels(metadata: Mapping[bytes, bytes]) -> dict[str, list[str]]:
    """Returns the names of class labels by column, as the library `datasets` writes them."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        return {
            name: feature["names"]
            for name, feature in features.items()
            if isinstance(feature, dict) and "names" in feature
        }
    except (KeyError, TypeError, ValueError):
        return {}


def _text(value: Any, labels: Sequence[str] | None) -> str:
    if value is None:
        return ""
    if labels is not None and isinstance(value, int) and 0 <= value < len(labels):
        return labels[value]
    return str(value).strip()


def _label(path: Path) -> str:
    """Returns a file's name, with that of its directory where it says nothing by itself."""
    return path.name if _SPLIT.fullmatch(path.stem) else f"{path.parent.name}/{path.name}"


def _beside(path: Path, audio: str | None) -> str:
    return str(path.parent / Path(audio).expanduser()) if audio else ""


class Parquet(Corpus):
    """A data set of Parquet files; a config is a language or a pair of languages.

    Attributes:
        columns: Names of columns by field, where `COLUMNS` does not have them; `--columns` sets it.
    """

    name = "parquet"
    title = "Parquet files with audio: test-00000-of-00002.parquet, or de_en/test/0000.parquet"
    text_rules = "transcript"
    columns: Mapping[str, str]

    def __init__(self) -> None:
        self.columns = {}

    def configs(self, source: Path, languages: Sequence[str] = ()) -> list[str]:
        """Lists the directories, or the languages of the rows of a single one; see `Corpus`."""
        directories = self._directories(source)
        if list(directories) != [""]:
            known = {_config(name): name for name in directories}
            return select_languages_or_pairs(list(known), languages, source)
        spoken = {
            language
            for row in read_rows(source, self.columns, required=())
            if is_language(language := row.fields.get("language", ""))
        }
        if spoken:
            # A dialect is prepared by itself only if it is requested; it is a part of its language.
            requested = {config_name(name) for name in languages if is_language(name)}
            available = {base_language(one) for one in spoken} | (
                {config_name(one) for one in spoken} & requested
            )
            return select_languages(sorted(available), languages, source)
        if len(languages) != 1:
            raise UserError(
                f"no column of {source} says the language; name it, --columns language=NAME, or "
                "name one language for all rows, --languages en."
            )
        return [_config(languages[0])]

    def utterances(self, source: Path, config: str, issues: IssueLog) -> Iterator[Utterance]:
        """Yields the rows of a config, split by split; see `Corpus`."""
        directories = self._directories(source)
        whole = list(directories) == [""]
        directory = next(
            path for name, path in directories.items() if whole or _config(name) == config
        )
        normalise = find_rules(self.text_rules)
        for row in read_rows(directory, self.columns, required=()):
            # `pt_br` is Portuguese of Brazil, or a translation of Portuguese into Breton.
            translated = _is_pair(config) and "translation" in row.fields
            spoken = config_language(config.partition("_")[0] if translated else config)
            language = row.fields.get("language", "")
            if whole and language and not is_language(language):
                detail = f"unknown language {language!r}"
                issues.add("bad value", split=row.split, item=row.place, detail=detail)
                continue
            code = normalize_language(language) if is_language(language) else spoken
            if whole and spoken not in (code, base_language(code)):
                continue
            if row.lacks_audio:
                issues.add("missing audio", split=row.split, item=row.place)
                continue
            raw = row.fields.get("text", "")
            fields = [name for name in ("text", "translation") if name in row.fields]
            if not row.audio and not fields:
                detail = "neither audio nor text"
                issues.add("bad value", split=row.split, item=row.place, detail=detail)
                continue
            yield Utterance(
                id=row.fields.get("id") or row.place,
                split=row.split,
                language=spoken,
                audio=row.audio,
                embedded=row.embedded,
                text=normalise(raw, spoken),
                raw_text=row.fields.get("raw_text") or raw,
                translation=row.fields.get("translation", ""),
                speaker=row.fields.get("speaker", ""),
                required=tuple(fields),
            )

    def _directories(self, source: Path) -> dict[str, Path]:
        """Returns the directory of each config; that of a single one is called nothing."""
        if split_files(source):
            return {"": source}
        directories = split_directories(source, lambda name: _is_pair(name) or is_language(name))
        if not directories:
            raise UserError(
                f"there are no Parquet files of splits in {source}; put test.parquet or "
                "test-00000-of-00001.parquet there, or into a directory per language."
            )
        return directories


def _is_pair(name: str) -> bool:
    spoken, _, written = name.partition("_")
    # `de_en`, and not the language `zh_CN`: the names of regions are in capitals.
    return written.islower() and is_language(spoken) and is_language(written)


def _config(name: str) -> str:
    if not _is_pair(name):
        return config_name(name)
    spoken, _, written = name.partition("_")
    return f"{base_language(spoken)}_{base_language(written)}"


def select_languages_or_pairs(
    available: Sequence[str], requested: Sequence[str], source: Path
) -> list[str]:
    """Selects configs that are languages or pairs of languages; see `select_languages`."""
    names = [name if name in available else _config(name.replace("-", "_")) for name in requested]
    for name in names:
        if name not in available:
            raise UserError(
                f"{name!r} is not in {source}; it has {', '.join(available)}."
                f"{near_misses(name, available)}"
            )
    return list(dict.fromkeys(names)) or list(available)
