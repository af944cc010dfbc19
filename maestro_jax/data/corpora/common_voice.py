"""Common Voice (Ardila et al., 2020): sentences read by volunteers, one directory per language.

    cv-corpus-17.0-2024-03-15/
        de/ sv-SE/ zh-CN/ ...
            train.tsv dev.tsv test.tsv validated.tsv other.tsv ...
            clips/common_voice_de_17298952.mp3 ...

All releases are read, also those before the fifth, whose archives have no directory of the
language. Only the columns `client_id`, `path` and `sentence` are used; the other columns differ
between releases. `validated.tsv` has the clips of the three splits and more. CorporaCreator writes
the tables with a backslash before tabs and ends of lines in sentences, and without quoting.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from maestro_jax.data.corpora import tables
from maestro_jax.data.corpora.corpus import (
    Corpus,
    PublishedSize,
    Utterance,
    published_sizes,
    select,
)
from maestro_jax.data.corpora.issues import IssueLog
from maestro_jax.errors import UserError
from maestro_jax.text.languages import base_language
from maestro_jax.text.languages import is_language as is_language_code
from maestro_jax.text.normalizers import normalize

_log = logging.getLogger(__name__)

ESCAPE = "\\"
TABLES = {"train": "train.tsv", "validation": "dev.tsv", "test": "test.tsv"}
MORE_TABLES = ("validated", "other")
"""Further tables, which are prepared only on request: `de_validated`."""

# The locale of a language that has no region in the name of its config.
_DEFAULT_LOCALES = {"zh": "zh-CN"}

_LOCALE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]+)*")
_RELEASE = re.compile(r"cv-corpus-(\d+(?:\.\d+)?)(?:-.*)?")
_CLIP = re.compile(r"common_voice_([A-Za-z0-9-]+)_\d+")


class CommonVoice(Corpus):
    """Reads the languages of a release.

    A config is a language: `sv` is read from `sv-SE`. Where a release has several locales of a
    language, all but one keep their regions: `zh` is read from `zh-CN`, `zh_tw` from `zh-TW`. Two
    further configs per language have one split, `train`, and are prepared only on request:
    `de_validated` has the validated clips that are in none of the three splits (they may share
    sentences and speakers with the test set), `de_other` those that nobody has validated.
    """

    name = "common_voice"
    title = "Common Voice: a release with LANGUAGE/train.tsv, dev.tsv, test.tsv, clips"

    def configs(self, source: Path, languages: Sequence[str] = ()) -> list[str]:
        """Lists the languages; they can be requested with or without a region; see `Corpus`."""
        locales = _locales_by_config(source)
        names = {locale: config for config, (locale, _) in locales.items()}
        requested = []
        for name in languages:
            stem, table = _split_config(name)
            requested.append(names.get(stem, stem.lower().replace("-", "_")) + table)
        available = list(locales)
        if any(_split_config(name)[1] for name in requested):
            available += [f"{config}_{table}" for config in locales for table in MORE_TABLES]
        return select(available, requested, source, "languages")

    def utterances(self, source: Path, config: str, issues: IssueLog) -> Iterator[Utterance]:
        """Yields the rows of the tables, split by split; see `Corpus`."""
        stem, table = _split_config(config)
        _, directory = _locales_by_config(source)[stem]
        language = base_language(stem)
        paths = {split: directory / name for split, name in TABLES.items()}
        paths = {split: path for split, path in paths.items() if path.is_file()}
        if not table:
            if not paths:
                raise UserError(
                    f"{directory} has none of {', '.join(TABLES.values())}; unpack the release."
                )
            for split, path in paths.items():
                yield from _utterances(path, language, split, issues, required=("text",))
            return
        # The issues of these tables are logged when the three splits are prepared.
        in_splits = {
            row["path"] for path in paths.values() for _, row in clip_rows(path, IssueLog(), "")
        }
        path = directory / f"{table[1:]}.tsv"
        required = ("text",) if table == "_validated" else ()
        yield from _utterances(
            path, language, "train", issues, required=required, excluded=in_splits
        )

    def published(self, source: Path, config: str) -> Mapping[str, PublishedSize]:
        """Returns the sizes of the splits; the directory `cv-corpus-...` tells the release."""
        if _split_config(config)[1]:
            return {}
        locale, directory = _locales_by_config(source)[config]
        for path in (directory, *directory.absolute().parents):
            if release := _RELEASE.fullmatch(path.name):
                return published_sizes(f"{self.name}/{release[1]}", locale)
        return {}


def locale_directories(source: Path) -> dict[str, Path]:
    """Finds the directories of the languages of Common Voice.

    Args:
        source: A release, a directory of releases, or one language.

    Returns:
        Directories by locale, such as `de` and `sv-SE`.

    Raises:
        UserError: Two releases have the same language.
    """
    if is_language(source):
        return {_find_locale(source): source}
    directories: dict[str, Path] = {}
    releases = (path for path in sorted(source.glob("cv-corpus-*")) if path.is_dir())
    for release in (source, *releases):
        for directory in sorted(path for path in release.iterdir() if path.is_dir()):
            if not is_language(directory):
                continue
            first = directories.setdefault(directory.name, directory)
            if first != directory:
                raise UserError(
                    f"{directory.name} is both in {first.parent} and in {release}; name one "
                    "release."
                )
    return directories


def is_language(directory: Path) -> bool:
    """Returns whether a directory is that of one language."""
    return any((directory / name).exists() for name in ("clips", "validated.tsv", "train.tsv"))


def clip_rows(
    path: Path, issues: IssueLog, split: str, required: Sequence[str] = ("path", "sentence")
) -> Iterator[tuple[str, dict[str, str]]]:
    """Yields the rows of a table of Common Voice or CoVoST-2; see `tables.rows`."""
    return tables.rows(path, issues, escape=ESCAPE, required=required, split=split)


def clip_path(directory: Path, name: str) -> str:
    """Returns the file of a clip.

    Args:
        directory: Directory of the language.
        name: Value of the column `path`, without a suffix in the first releases.
    """
    return str(directory / "clips" / (name if Path(name).suffix else f"{name}.mp3"))


def _utterances(
    path: Path,
    language: str,
    split: str,
    issues: IssueLog,
    *,
    required: tuple[str, ...],
    excluded: Collection[str] = frozenset(),
) -> Iterator[Utterance]:
    """Yields the rows of one table, except for the excluded clips."""
    for place, row in clip_rows(path, issues, split):
        clip = row["path"].strip()
        if not clip:
            issues.add("bad value", split=split, item=place, detail="no path")
            continue
        if row["path"] in excluded:
            continue
        yield Utterance(
            id=Path(clip).stem,
            split=split,
            language=language,
            audio=clip_path(path.parent, clip),
            text=normalize(row["sentence"], language),
            raw_text=row["sentence"].strip(),
            speaker=row.get("client_id", "").strip(),
            required=required,
        )


def _locales_by_config(source: Path) -> Mapping[str, tuple[str, Path]]:
    """Returns locale and directory of each config, in alphabetical order."""
    directories = locale_directories(source)
    by_language: dict[str, list[str]] = {}
    for locale in directories:
        by_language.setdefault(base_language(locale), []).append(locale)
    configs = {}
    for language in sorted(filter(is_language_code, by_language)):
        locales = by_language[language]
        default = _DEFAULT_LOCALES.get(language, language if len(locales) > 1 else locales[0])
        for locale in sorted(locales):
            config = language if locale == default else locale.lower().replace("-", "_")
            configs[config] = (locale, directories[locale])
    return configs


def _split_config(config: str) -> tuple[str, str]:
    """Splits a config into its language and `_validated`, `_other` or nothing."""
    for table in MORE_TABLES:
        if config.endswith(f"_{table}"):
            return config.removesuffix(f"_{table}"), f"_{table}"
    return config, ""


def _find_locale(directory: Path) -> str:
    """Returns the locale of a directory of one language, from its first clip or its name."""
    for table in (*TABLES.values(), "validated.tsv"):
        if (path := directory / table).is_file():
            for _, row in clip_rows(path, IssueLog(), ""):
                clip = _CLIP.match(row["path"])
                if row.get("locale") or clip:
                    return row.get("locale") or clip[1]  # type: ignore[index]
                break
    if not _LOCALE.fullmatch(directory.name):
        raise UserError(
            f"the language of {directory} is not known; give the directory a name like `sv-SE`."
        )
    return directory.name
