"""Translated text, line by line: WMT, TED, or any pair of files.

    train.de-en.de train.de-en.en       the same number of lines, each plain or with .gz
    newstest2014.de-en.de ...           validation or test, if a word of the name says so

A directory holds any number of pairs of languages, and of files of a pair. From files named
`de-en`, `de_en` translates from German, and `en_de`, if it is asked for, from English.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from maestro_jax.data.corpora import tables
from maestro_jax.data.corpora.corpus import Corpus, choose
from maestro_jax.data.corpora.problems import Problems
from maestro_jax.data.corpora.text_splits import split_of
from maestro_jax.data.corpora.utterance import Utterance
from maestro_jax.errors import UserError
from maestro_jax.text.languages import language_id
from maestro_jax.text.normalizers import base_language
from maestro_jax.text.spoken_forms import find_rules

_CODE = r"[a-z]{2,3}(?:[-_][A-Z]{2})?"
_SIDE = re.compile(rf"(.+)\.({_CODE})-({_CODE})\.({_CODE})(\.gz)?")


class ParallelText(Corpus):
    """Pairs of files; a config is a pair of languages, from the first to the second."""

    name = "parallel_text"
    title = "a directory of translated texts: train.de-en.de and train.de-en.en, also with .gz"
    part_utterances = 1 << 14
    numbered = True
    rules = "transcript"

    def configs(self, source: Path, languages: Sequence[str] = ()) -> list[str]:
        """The pairs of languages of the files, in their direction if none is named; see `Corpus`.

        Raises:
            UserError: A pair is not there, a file has no partner, or a language is unknown.
        """
        pairs = _pairs(source)
        there = sorted({f"{pair.first}_{pair.second}" for pair in pairs})
        if languages:
            there += sorted({f"{pair.second}_{pair.first}" for pair in pairs} - set(there))
        wanted = [name.replace("-", "_") for name in languages]
        chosen = choose(there, wanted, source, "pairs of languages")
        for name in chosen:
            for language in name.split("_"):
                language_id(language)
        return chosen

    def utterances(self, source: Path, config: str, problems: Problems) -> Iterator[Utterance]:
        """The lines of a pair of languages, file by file; see `Corpus`."""
        language, _, target = config.partition("_")
        normalized = find_rules(self.rules)
        for pair in _pairs(source):
            if {pair.first, pair.second} != {language, target}:
                continue
            split = split_of(pair.stem)
            for number, lines in enumerate(_lines(pair), start=1):
                line, translation = lines if pair.first == language else lines[::-1]
                yield Utterance(
                    id=f"{pair.name}:{number}",
                    split=split,
                    language=language,
                    text=normalized(line, language),
                    raw_text=line.strip(),
                    translation=" ".join(translation.split()),
                    needs=("text", "translation"),
                )


@dataclasses.dataclass(frozen=True)
class _Pair:
    """Two files that translate each other.

    Attributes:
        stem: What their names begin with, such as `train`.
        name: What their names share, such as `train.de-en`.
        first: The language of the first one.
        second: The language of the second one.
        paths: Both.
    """

    stem: str
    name: str
    first: str
    second: str
    paths: tuple[Path, Path]


def _pairs(source: Path) -> list[_Pair]:
    """All pairs, in the order of their names.

    Raises:
        UserError: A file has no partner.
    """
    found: dict[tuple[str, str, str], dict[str, Path]] = {}
    for path in sorted(source.iterdir()):
        match = _SIDE.fullmatch(path.name)
        if match and match[4] in (match[2], match[3]) and path.is_file():
            found.setdefault((match[1], match[2], match[3]), {}).setdefault(match[4], path)
    pairs = []
    for (stem, first, second), sides in found.items():
        name = f"{stem}.{first}-{second}"
        for side in (first, second):
            if side not in sides:
                raise UserError(f"{source / name}.{side} is not there; put it beside the other.")
        languages = base_language(first), base_language(second)
        pairs.append(_Pair(stem, name, *languages, (sides[first], sides[second])))
    return pairs


def _lines(pair: _Pair) -> Iterator[tuple[str, str]]:
    """A line of the first file, and its translation.

    Raises:
        UserError: One file has more lines: nothing after a missing line would be translated right.
    """
    first, second = (tables.lines(path) for path in pair.paths)
    for one, other in itertools.zip_longest(first, second):
        if one is None or other is None:
            counts = [sum(1 for _ in tables.lines(path)) for path in pair.paths]
            raise UserError(
                f"{pair.paths[0]} has {counts[0]} lines and {pair.paths[1].name} has {counts[1]}; "
                "get both files of the same version."
            )
        yield one[1], other[1]
