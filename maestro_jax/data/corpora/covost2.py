"""CoVoST-2: translations of Common Voice 4, from 21 languages into English and from it into 15.

The translations come as a table a direction, the speech as the release `4` of Common Voice:

    covost_v2.de_en.tsv             path, translation, split
    de/validated.tsv de/clips/      path, sentence, client_id; clips

The tables may lie in the directory of the corpus, in that of the language, or in one called
`covost...`; the languages as `CommonVoice` reads them. They are joined on `path` here, as
`get_covost_splits.py` does. What that script writes, `covost_v2.de_en.{train,dev,test}.tsv`, is
read where the table or `validated.tsv` is not there.

Translators marked sentences that they could not translate with `REMOVE`, or left them empty. They
are not trained on, but stay in the other splits: scores are published over all of those.

Source: Wang, Wu and Pino (2020), arXiv 2007.10310; github.com/facebookresearch/covost.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from maestro_jax.data.corpora.common_voice import (
    clip_path,
    clip_rows,
    is_language,
    locale_directories,
)
from maestro_jax.data.corpora.corpus import Corpus, Published, choose
from maestro_jax.data.corpora.covost2_sizes import FROM_ENGLISH, SIZES
from maestro_jax.data.corpora.problems import Problems
from maestro_jax.data.corpora.utterance import Utterance
from maestro_jax.errors import UserError
from maestro_jax.text.languages import LANGUAGES
from maestro_jax.text.normalizers import base_language, normalize

SPLITS = {
    "train": "train",
    # Validated clips that Common Voice keeps out of its own splits.
    "train_covost": "train",
    "dev": "validation",
    "test": "test",
}
JOINED = ("train", "dev", "test")

_LOCALE = r"[A-Za-z]{2,3}(?:-[A-Za-z]+)?"
_TABLE = re.compile(rf"covost_v2\.({_LOCALE})_({_LOCALE})\.tsv")
_JOINED = re.compile(rf"covost_v2\.({_LOCALE})_({_LOCALE})\.({'|'.join(JOINED)})\.tsv")
_UNTRANSLATED = re.compile(r"\bREMOVE\b")


class Covost2(Corpus):
    """The directions that have a table.

    A config is a direction, `de_en` or `en_zh`, without the regions of `zh-CN` and `sv-SE`.
    """

    name = "covost2"
    title = "CoVoST-2: covost_v2.SOURCE_TARGET.tsv beside SOURCE/validated.tsv and SOURCE/clips"

    def configs(self, source: Path, languages: Sequence[str] = ()) -> list[str]:
        """The directions; a language stands for all directions from it. See `Corpus`."""
        there = sorted({*_tables(source), *_joined(source)})
        wanted: dict[str, None] = {}
        for name in languages:
            # Both `de_en` and, as reports have it, `de-en`; with regions or without.
            spoken, _, written = name.partition("_" if "_" in name else "-")
            if written and (config := _config(spoken, written)) in there:
                wanted[config] = None
                continue
            # `sv-SE` is a language, `sv-en` would be a direction.
            language = base_language(name) if not written or written.isupper() else name
            from_it = [config for config in there if config.startswith(f"{language}_")]
            wanted |= dict.fromkeys(from_it or [name])
        return choose(there, list(wanted), source, "directions (covost_v2.SOURCE_TARGET.tsv)")

    def utterances(self, source: Path, config: str, problems: Problems) -> Iterator[Utterance]:
        """The clips of a direction in the order of Common Voice's table; see `Corpus`."""
        language, _ = config.split("_")
        directory = _clips_of(source, config)
        table, validated = _tables(source).get(config), directory / "validated.tsv"
        if table is not None and validated.is_file():
            rows = _join(table, validated, problems)
        elif joined := _joined(source).get(config):
            rows = _read_joined(joined, problems)
        else:
            raise UserError(
                f"there is no {validated} to join {table} with; take that of Common Voice 4."
            )
        for place, split, row in rows:
            clip, sentence = row["path"].strip(), row["sentence"].strip()
            text, translation = normalize(sentence, language), row["translation"].strip()
            usable = bool(translation) and not _UNTRANSLATED.search(translation)
            if not usable and split == "train":
                detail = translation or "no translation"
                problems.add("set aside", split=split, item=place, detail=detail)
                continue
            if not (text and usable):
                detail = sentence if not text else translation
                problems.add("incomplete", split=split, item=place, detail=detail)
            yield Utterance(
                id=Path(clip).stem,
                split=split,
                language=language,
                audio=clip_path(directory, clip),
                text=text,
                raw_text=sentence,
                translation=translation,
                speaker=row.get("client_id", "").strip(),
            )

    def published(self, source: Path, config: str) -> Mapping[str, Published]:
        """The sizes of the splits as they are joined with Common Voice 4."""
        del source
        language, target = config.split("_")
        same = language == "en" and target in FROM_ENGLISH
        sizes = SIZES.get("en_x" if same else config)
        if sizes is None:
            return {}
        return dict(zip(("train", "validation", "test"), map(Published, sizes), strict=True))


def _config(spoken: str, written: str) -> str:
    return f"{base_language(spoken)}_{base_language(written)}"


def _places(source: Path) -> list[Path]:
    """Directories in which tables may lie."""
    beside = [path for path in sorted(source.glob("[cC]o[vV]o[sS][tT]*")) if path.is_dir()]
    languages = () if is_language(source) else locale_directories(source).values()
    return list(dict.fromkeys([source, *beside, *languages]))


def _found(source: Path, pattern: re.Pattern[str]) -> Iterator[tuple[str, re.Match[str], Path]]:
    """Directions with languages that are known, their names and their files."""
    for place in _places(source):
        for path in sorted(place.iterdir()):
            match = pattern.fullmatch(path.name)
            if match and {base_language(match[1]), base_language(match[2])} <= set(LANGUAGES):
                yield _config(match[1], match[2]), match, path


def _tables(source: Path) -> dict[str, Path]:
    """By config, the table of translations; the first one found."""
    found: dict[str, Path] = {}
    for config, _, path in _found(source, _TABLE):
        found.setdefault(config, path)
    return found


def _joined(source: Path) -> dict[str, dict[str, Path]]:
    """By config, the joined tables by split; the first ones found."""
    found: dict[str, dict[str, Path]] = {}
    for config, match, path in _found(source, _JOINED):
        found.setdefault(config, {}).setdefault(SPLITS[match[3]], path)
    return found


def _clips_of(source: Path, config: str) -> Path:
    """The directory of the language that is spoken.

    Raises:
        UserError: It is not there.
    """
    if is_language(source):
        return source
    language, _ = config.split("_")
    found = {
        locale: directory
        for locale, directory in locale_directories(source).items()
        if base_language(locale) == language
    }
    for locale in (language, "zh-CN", "sv-SE", *found):
        if locale in found:
            return found[locale]
    raise UserError(
        f"there is no Common Voice 4 of {language!r} in {source}, which {config} translates; put "
        f"its validated.tsv and clips into {source / language}."
    )


def _join(
    table: Path, validated: Path, problems: Problems
) -> Iterator[tuple[str, str, dict[str, str]]]:
    """Place, split and joined row of every clip that is in both tables."""
    # The translations of the largest direction are 320 thousand lines, the clips millions.
    translations: dict[str, tuple[str, str, str]] = {}
    matched: set[str] = set()
    for place, row in clip_rows(table, problems, "", ("path", "translation", "split")):
        split = SPLITS.get(row["split"].strip())
        if split is None:
            problems.add("unknown split", item=place, detail=row["split"])
        elif row["path"] in translations:
            problems.add("duplicate id", split=split, item=place, detail=row["path"])
        else:
            translations[row["path"]] = (place, split, row["translation"])
    for _, row in clip_rows(validated, problems, ""):
        if found := translations.get(row["path"]):
            place, split, translation = found
            matched.add(row["path"])
            yield place, split, {**row, "translation": translation}
    if translations and not matched:
        raise UserError(
            f"no clip of {table} is in {validated}; CoVoST-2 belongs to Common Voice 4, whose "
            "validated.tsv is needed."
        )
    for path, (place, split, _) in translations.items():
        if path not in matched:
            problems.add("no counterpart", split=split, item=place, detail=path)


def _read_joined(
    joined: Mapping[str, Path], problems: Problems
) -> Iterator[tuple[str, str, dict[str, str]]]:
    """Place, split and row of tables that `get_covost_splits.py` wrote."""
    for split in ("train", "validation", "test"):
        if split in joined:
            required = ("path", "sentence", "translation")
            for place, row in clip_rows(joined[split], problems, split, required):
                yield place, split, row
