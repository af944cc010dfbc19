"""CoVoST-2: translations of Common Voice 4, from 21 languages into English and from it into 15.

The translations are published as one table per direction; the speech is release 4 of Common Voice:

    covost_v2.de_en.tsv             path, translation, split
    de/validated.tsv de/clips/      path, sentence, client_id; clips

The tables may be in the directory of the corpus, in that of the language, or in one called
`covost...`; directories of languages are found as by `CommonVoice`. The two tables are joined on
`path`, as `get_covost_splits.py` does. If one of them is missing, the tables that this script
writes, `covost_v2.de_en.{train,dev,test}.tsv`, are read instead.

Release 4 of Common Voice is no longer given out. Without any table, Parquet files are read, which
have the audio inside: `de_en/test-00000-of-00008.parquet`, see `maestro_jax.data.corpora.parquet`.
Mirrors on the Hugging Face hub have this layout; the published sizes tell whether one is whole.

Translators marked sentences that they could not translate with `REMOVE`, or left them empty. They
are left out of training, but stay in the other splits, since published scores include them.

Source: Wang, Wu and Pino (2020), arXiv 2007.10310; github.com/facebookresearch/covost.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from maestro_jax.data.corpora import parquet
from maestro_jax.data.corpora.common_voice import (
    clip_path,
    clip_rows,
    is_language,
    locale_directories,
)
from maestro_jax.data.corpora.corpus import (
    Corpus,
    PublishedSize,
    Utterance,
    published_sizes,
    select,
)
from maestro_jax.data.corpora.issues import IssueLog
from maestro_jax.errors import UserError
from maestro_jax.text.languages import LANGUAGES
from maestro_jax.text.normalizers import base_language, normalize

INTO_ENGLISH = (
    *("fr", "de", "es", "ca", "it", "ru", "zh", "pt", "fa", "et", "mn"),
    *("nl", "tr", "ar", "sv", "lv", "sl", "ta", "ja", "id", "cy"),
)
"""The languages that are translated into English."""

FROM_ENGLISH = (
    *("de", "tr", "fa", "sv", "mn", "zh", "cy", "ca", "sl", "et", "id", "ar", "ta", "lv", "ja"),
)
"""The languages that English is translated into."""

SPLITS = {
    "train": "train",
    # Validated clips that are in none of Common Voice's own splits.
    "train_covost": "train",
    "dev": "validation",
    "test": "test",
}
JOINED = ("train", "dev", "test")

_LOCALE = r"[A-Za-z]{2,3}(?:-[A-Za-z]+)?"
_TABLE = re.compile(rf"covost_v2\.({_LOCALE})_({_LOCALE})\.tsv")
_JOINED = re.compile(rf"covost_v2\.({_LOCALE})_({_LOCALE})\.({'|'.join(JOINED)})\.tsv")
_PAIR = re.compile(rf"({_LOCALE})_({_LOCALE})")
_UNTRANSLATED = re.compile(r"\bREMOVE\b")


class Covost2(Corpus):
    """Reads the directions that have a table.

    A config is a direction, `de_en` or `en_zh`, without the regions of `zh-CN` and `sv-SE`.
    """

    name = "covost2"
    title = (
        "CoVoST-2: covost_v2.SOURCE_TARGET.tsv beside SOURCE/validated.tsv and SOURCE/clips, or "
        "Parquet files in directories SOURCE_TARGET"
    )
    columns: Mapping[str, str]

    def __init__(self) -> None:
        self.columns = {}

    def configs(self, source: Path, languages: Sequence[str] = ()) -> list[str]:
        """Lists the directions; a language requests all directions from it. See `Corpus`."""
        available = sorted({*_tables(source), *_joined_tables(source), *_parquet(source)})
        requested: dict[str, None] = {}
        for name in languages:
            # Both `de_en` and, as tables of scores have it, `de-en`; with or without regions.
            spoken, _, written = name.partition("_" if "_" in name else "-")
            if written and (config := _config(spoken, written)) in available:
                requested[config] = None
                continue
            # `sv-SE` is a language, `sv-en` would be a direction.
            language = base_language(name) if not written or written.isupper() else name
            from_it = [config for config in available if config.startswith(f"{language}_")]
            requested |= dict.fromkeys(from_it or [name])
        kind = "directions (covost_v2.SOURCE_TARGET.tsv, or directories of Parquet files)"
        return select(available, list(requested), source, kind)

    def utterances(self, source: Path, config: str, issues: IssueLog) -> Iterator[Utterance]:
        """Yields the clips of a direction in the order of Common Voice's table; see `Corpus`."""
        language, _ = config.split("_")
        if config not in {**_tables(source), **_joined_tables(source)}:
            yield from self._parquet_utterances(_parquet(source)[config], language, issues)
            return
        directory = _language_directory(source, config)
        table, validated = _tables(source).get(config), directory / "validated.tsv"
        if table is not None and validated.is_file():
            rows = _join(table, validated, issues)
        elif joined := _joined_tables(source).get(config):
            rows = _read_joined(joined, issues)
        else:
            raise UserError(
                f"there is no {validated} to join {table} with; put that of Common Voice 4 there."
            )
        for place, split, row in rows:
            clip = row["path"].strip()
            utterance = Utterance(
                id=Path(clip).stem,
                split=split,
                language=language,
                audio=clip_path(directory, clip),
                text=normalize(row["sentence"], language),
                raw_text=row["sentence"].strip(),
                translation=row["translation"].strip(),
                speaker=row.get("client_id", "").strip(),
            )
            if _is_kept(utterance, place, issues):
                yield utterance

    def _parquet_utterances(
        self, directory: Path, language: str, issues: IssueLog
    ) -> Iterator[Utterance]:
        for row in parquet.read_rows(
            directory, self.columns, required=("audio", "text", "translation")
        ):
            if row.lacks_audio:
                issues.add("missing audio", split=row.split, item=row.place)
                continue
            utterance = Utterance(
                id=Path(row.fields["id"]).stem if row.fields.get("id") else row.place,
                split=row.split,
                language=language,
                audio=row.audio,
                embedded=row.embedded,
                text=normalize(row.fields["text"], language),
                raw_text=row.fields["text"],
                translation=row.fields["translation"],
                speaker=row.fields.get("speaker", ""),
            )
            if _is_kept(utterance, row.place, issues):
                yield utterance

    def published(self, source: Path, config: str) -> Mapping[str, PublishedSize]:
        """Returns the sizes of the joined splits, which all directions from English share."""
        language, target = config.split("_")
        from_english = language == "en" and target in FROM_ENGLISH
        return published_sizes(self.name, "en_x" if from_english else config)


def _is_kept(utterance: Utterance, place: str, issues: IssueLog) -> bool:
    """Returns whether an utterance is usable, and notes what is wrong with it."""
    split, translation = utterance.split, utterance.translation
    usable = bool(translation) and not _UNTRANSLATED.search(translation)
    if not usable and split == "train":
        issues.add("set aside", split=split, item=place, detail=translation or "no translation")
        return False
    if not (utterance.text and usable):
        detail = utterance.raw_text if not utterance.text else translation
        issues.add("incomplete", split=split, item=place, detail=detail)
    return True


def _parquet(source: Path) -> dict[str, Path]:
    """Returns the directory of the Parquet files of each config."""
    directories = parquet.split_directories(source, lambda name: _PAIR.fullmatch(name) is not None)
    pairs = {match: path for name, path in directories.items() if (match := _PAIR.fullmatch(name))}
    return {_config(match[1], match[2]): path for match, path in pairs.items()}


def _config(spoken: str, written: str) -> str:
    return f"{base_language(spoken)}_{base_language(written)}"


def _table_directories(source: Path) -> list[Path]:
    """Returns the directories in which tables may be."""
    covost = [path for path in sorted(source.glob("[cC]o[vV]o[sS][tT]*")) if path.is_dir()]
    languages = () if is_language(source) else locale_directories(source).values()
    return list(dict.fromkeys([source, *covost, *languages]))


def _matching_files(
    source: Path, pattern: re.Pattern[str]
) -> Iterator[tuple[str, re.Match[str], Path]]:
    """Yields config, match and path of each file whose name matches and has known languages."""
    for directory in _table_directories(source):
        for path in sorted(directory.iterdir()):
            match = pattern.fullmatch(path.name)
            if match and {base_language(match[1]), base_language(match[2])} <= set(LANGUAGES):
                yield _config(match[1], match[2]), match, path


def _tables(source: Path) -> dict[str, Path]:
    """Returns the table of translations of each config."""
    paths: dict[str, Path] = {}
    for config, _, path in _matching_files(source, _TABLE):
        paths.setdefault(config, path)
    return paths


def _joined_tables(source: Path) -> dict[str, dict[str, Path]]:
    """Returns the joined tables of each config, by split."""
    paths: dict[str, dict[str, Path]] = {}
    for config, match, path in _matching_files(source, _JOINED):
        paths.setdefault(config, {}).setdefault(SPLITS[match[3]], path)
    return paths


def _language_directory(source: Path, config: str) -> Path:
    """Returns the directory of the spoken language.

    Raises:
        UserError: There is none.
    """
    if is_language(source):
        return source
    language, _ = config.split("_")
    directories = {
        locale: directory
        for locale, directory in locale_directories(source).items()
        if base_language(locale) == language
    }
    for locale in (language, "zh-CN", "sv-SE", *directories):
        if locale in directories:
            return directories[locale]
    raise UserError(
        f"there is no Common Voice 4 of {language!r} in {source}, which {config} translates; put "
        f"its validated.tsv and clips into {source / language}."
    )


def _join(
    table: Path, validated: Path, issues: IssueLog
) -> Iterator[tuple[str, str, dict[str, str]]]:
    """Yields `file:line`, split and joined row of every clip that is in both tables."""
    # Only the translations, at most 320 thousand lines, are kept in memory: clips are millions.
    translations: dict[str, tuple[str, str, str]] = {}
    matched: set[str] = set()
    for place, row in clip_rows(table, issues, "", ("path", "translation", "split")):
        split = SPLITS.get(row["split"].strip())
        if split is None:
            issues.add("unknown split", item=place, detail=row["split"])
        elif row["path"] in translations:
            issues.add("duplicate id", split=split, item=place, detail=row["path"])
        else:
            translations[row["path"]] = (place, split, row["translation"])
    for _, row in clip_rows(validated, issues, ""):
        if row["path"] in translations:
            place, split, translation = translations[row["path"]]
            matched.add(row["path"])
            yield place, split, {**row, "translation": translation}
    if translations and not matched:
        raise UserError(
            f"no clip of {table} is in {validated}; CoVoST-2 needs the validated.tsv of Common "
            "Voice 4."
        )
    for path, (place, split, _) in translations.items():
        if path not in matched:
            issues.add("no counterpart", split=split, item=place, detail=path)


def _read_joined(
    joined: Mapping[str, Path], issues: IssueLog
) -> Iterator[tuple[str, str, dict[str, str]]]:
    """Yields `file:line`, split and row of tables that `get_covost_splits.py` wrote."""
    for split in ("train", "validation", "test"):
        if split in joined:
            required = ("path", "sentence", "translation")
            for place, row in clip_rows(joined[split], issues, split, required):
                yield place, split, row
