"""Common Voice: sentences read by volunteers, one directory a language.

    cv-corpus-17.0-2024-03-15/
        de/ sv-SE/ zh-CN/ ...
            train.tsv dev.tsv test.tsv validated.tsv other.tsv ...
            clips/common_voice_de_17298952.mp3 ...

Any release is read, and so is a language that was unpacked without its directory, as those before
the fifth come. The columns that count are `client_id`, `path` and `sentence`; those around them
change from one release to the next. `validated.tsv` holds the clips of the three splits and more.

Source: Ardila et al. (2020), arXiv 1912.06670. The tables are written by CorporaCreator with a
backslash before tabs and line ends in sentences, and with no quoting.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from maestro_jax.data.corpora import tables
from maestro_jax.data.corpora.common_voice_sizes import SIZES
from maestro_jax.data.corpora.corpus import Corpus, Published, choose
from maestro_jax.data.corpora.problems import Problems
from maestro_jax.data.corpora.utterance import Utterance
from maestro_jax.errors import UserError
from maestro_jax.text.languages import LANGUAGES
from maestro_jax.text.normalizers import base_language, normalize

log = logging.getLogger(__name__)

ESCAPE = "\\"
TABLES = {"train": "train.tsv", "validation": "dev.tsv", "test": "test.tsv"}
FURTHER = ("validated", "other")
"""Tables beside the three splits, prepared only when they are named: `de_validated`."""

# Of several written forms of a language, the one that has its plain code.
_PLAIN = {"zh": "zh-CN"}

_LOCALE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]+)*")
_RELEASE = re.compile(r"cv-corpus-(\d+(?:\.\d+)?)(?:-.*)?")
_CLIP = re.compile(r"common_voice_([A-Za-z0-9-]+)_\d+")


class CommonVoice(Corpus):
    """The languages of a release.

    A config is a language: `sv` is what lies in `sv-SE`. Where a language is there in several
    forms, all but one keep their regions: `zh` is what lies in `zh-CN`, `zh_tw` in `zh-TW`. Two
    further configs of a language have one split, `train`, and are prepared when they are named:
    `de_validated` has the validated clips that are in none of the three splits (but sentences and
    speakers of the test set may be among them), `de_other` those that nobody has validated.
    """

    name = "common_voice"
    title = "Common Voice: a release with LANGUAGE/train.tsv, dev.tsv, test.tsv, clips"

    def configs(self, source: Path, languages: Sequence[str] = ()) -> list[str]:
        """The languages, with or without their regions; see `Corpus`."""
        found = _by_config(source)
        unknown = {base_language(locale) for locale in locale_directories(source)} - set(LANGUAGES)
        if unknown and not languages:
            log.warning(
                "left out, for they have no place in maestro_jax.text.languages.LANGUAGES: %s",
                ", ".join(sorted(unknown)),
            )
        names = {locale: config for config, (locale, _) in found.items()}
        wanted = []
        for name in languages:
            stem, further = _parts(name)
            wanted.append(names.get(stem, stem.lower().replace("-", "_")) + further)
        there = list(found)
        if any(_parts(name)[1] for name in wanted):
            there += [f"{config}_{table}" for config in found for table in FURTHER]
        return choose(there, wanted, source, "languages")

    def utterances(self, source: Path, config: str, problems: Problems) -> Iterator[Utterance]:
        """The rows of the tables, split by split; see `Corpus`."""
        stem, further = _parts(config)
        _, directory = _by_config(source)[stem]
        language = base_language(stem)
        tables_of = {split: directory / table for split, table in TABLES.items()}
        there = {split: path for split, path in tables_of.items() if path.is_file()}
        if not further:
            if not there:
                raise UserError(f"there is none of {', '.join(TABLES.values())} in {directory}.")
            for split, path in there.items():
                yield from _utterances(path, language, split, problems, needs=("text",))
            return
        # The splits' own problems are told when they are prepared.
        known = {
            row["path"] for path in there.values() for _, row in clip_rows(path, Problems(), "")
        }
        path = directory / f"{further[1:]}.tsv"
        needs = ("text",) if further == "_validated" else ()
        yield from _utterances(path, language, "train", problems, needs=needs, but=known)

    def published(self, source: Path, config: str) -> Mapping[str, Published]:
        """The sizes of the splits, of the releases of which they are known here.

        A release is known by its directory, whose name begins with `cv-corpus-`.
        """
        if _parts(config)[1]:
            return {}
        locale, directory = _by_config(source)[config]
        for place in (directory, *directory.absolute().parents):
            if release := _RELEASE.fullmatch(place.name):
                sizes = SIZES.get(release[1], {}).get(locale, ())
                return dict(zip(TABLES, map(Published, sizes), strict=False))
        return {}


def locale_directories(source: Path) -> dict[str, Path]:
    """Where the languages of Common Voice lie.

    Args:
        source: A release, a directory of releases, or one language.

    Returns:
        From locales such as `de` and `sv-SE` to directories.

    Raises:
        UserError: A language is there twice, in two releases.
    """
    if is_language(source):
        return {_locale(source): source}
    found: dict[str, Path] = {}
    releases = (path for path in sorted(source.glob("cv-corpus-*")) if path.is_dir())
    for release in (source, *releases):
        for directory in sorted(path for path in release.iterdir() if path.is_dir()):
            if not is_language(directory):
                continue
            known = found.setdefault(directory.name, directory)
            if known != directory:
                raise UserError(
                    f"{directory.name} is there twice, in {known.parent} and {release}; name one "
                    "release."
                )
    return found


def is_language(directory: Path) -> bool:
    """Whether a directory is that of one language, not of several."""
    return any((directory / name).exists() for name in ("clips", "validated.tsv", "train.tsv"))


def clip_rows(
    path: Path, problems: Problems, split: str, required: Sequence[str] = ("path", "sentence")
) -> Iterator[tuple[str, dict[str, str]]]:
    """The rows of a table of Common Voice, or of one made from it; see `tables.rows`."""
    return tables.rows(path, problems, escape=ESCAPE, required=required, split=split)


def clip_path(directory: Path, name: str) -> str:
    """The file of a clip; the tables of the first releases leave its ending out.

    Args:
        directory: Of a language.
        name: In the column `path`.
    """
    return str(directory / "clips" / (name if Path(name).suffix else f"{name}.mp3"))


def _utterances(
    path: Path,
    language: str,
    split: str,
    problems: Problems,
    *,
    needs: tuple[str, ...],
    but: Collection[str] = frozenset(),
) -> Iterator[Utterance]:
    """The rows of one table, without some clips."""
    for place, row in clip_rows(path, problems, split):
        clip = row["path"].strip()
        if not clip:
            problems.add("bad value", split=split, item=place, detail="no path")
            continue
        if row["path"] in but:
            continue
        yield Utterance(
            id=Path(clip).stem,
            split=split,
            language=language,
            audio=clip_path(path.parent, clip),
            text=normalize(row["sentence"], language),
            raw_text=row["sentence"].strip(),
            speaker=row.get("client_id", "").strip(),
            needs=needs,
        )


def _by_config(source: Path) -> Mapping[str, tuple[str, Path]]:
    """From configs to locales and directories, in alphabetical order."""
    directories = locale_directories(source)
    by_language: dict[str, list[str]] = {}
    for locale in directories:
        by_language.setdefault(base_language(locale), []).append(locale)
    configs = {}
    for language in sorted(set(by_language) & set(LANGUAGES)):
        locales = by_language[language]
        plain = _PLAIN.get(language, language if len(locales) > 1 else locales[0])
        for locale in sorted(locales):
            config = language if locale == plain else locale.lower().replace("-", "_")
            configs[config] = (locale, directories[locale])
    return configs


def _parts(config: str) -> tuple[str, str]:
    """The language of a config, and `_validated`, `_other` or nothing."""
    for table in FURTHER:
        if config.endswith(f"_{table}"):
            return config.removesuffix(f"_{table}"), f"_{table}"
    return config, ""


def _locale(directory: Path) -> str:
    """The locale of a language that was unpacked somewhere, by its first clip."""
    for table in (*TABLES.values(), "validated.tsv"):
        if (path := directory / table).is_file():
            for _, row in clip_rows(path, Problems(), ""):
                clip = _CLIP.match(row["path"])
                if row.get("locale") or clip:
                    return row.get("locale") or clip[1]  # type: ignore[index]
                break
    if not _LOCALE.fullmatch(directory.name):
        raise UserError(f"{directory} does not say its language; name the directory like `sv-SE`.")
    return directory.name
