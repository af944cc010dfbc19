"""Corpora of text without audio: one file per language, directories of texts, parallel texts.

`TextFiles` reads mC4, or any files of text:

    de/*.txt de/*.jsonl de/*.json       one directory per language; each file plain or with .gz
    multilingual/c4-de.tfrecord-00000-of-02048.json.gz      mC4 as it is downloaded
    news-commentary-v8.en.gz            the language at the end, as TED-LIUM's texts have it

A line of a text file is a paragraph or a sentence. A line of a JSON file is an object whose `text`
is a document. Both are cut into sentences, which become utterances.

`ParallelText` reads WMT, TED, or any pairs of files whose lines translate each other:

    train.de-en.de train.de-en.en       the same number of lines, each plain or with .gz
    newstest2014.de-en.de ...

A directory may hold several pairs of languages, and several files of a pair. From files named
`de-en`, the config `de_en` translates from German; `en_de`, if it is requested, from English.

The split of a file is `validation` or `test` if a word of its name says so, else `train`.
"""

from __future__ import annotations

import abc
import dataclasses
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import regex

from maestro_jax.data.corpora import tables
from maestro_jax.data.corpora.corpus import Corpus, Utterance, select, select_languages
from maestro_jax.data.corpora.issues import IssueLog
from maestro_jax.errors import UserError
from maestro_jax.text.characters import SPELLED_JOINERS
from maestro_jax.text.languages import (
    LANGUAGES,
    base_language,
    config_language,
    config_name,
    is_language,
    normalize_language,
)
from maestro_jax.text.normalizers import find_rules

# Some megabytes of text; each process has several shards in memory.
LINES_PER_SHARD = 1 << 14

_SPLIT_OF_WORD = {
    "dev": "validation",
    "newsdev": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "newstest": "test",
    "tst": "test",
}


def split_of(name: str) -> str:
    """Returns the split of a file: `validation` or `test` if its name says so, else `train`.

    `newstest2014.de-en.de` is of the test split, `c4-de-validation.tfrecord-00000-of-00001.json.gz`
    of the validation split, `latest.txt` of the training split.
    """
    splits = (_SPLIT_OF_WORD.get(word) for word in re.findall(r"[a-z]+", name.lower()))
    return next((split for split in splits if split), "train")


def lower_case(published: str) -> str:
    """Normalises a text that is published without punctuation: lower case, single spaces.

    Apostrophes at the ends of words (`'tis`) and hyphens within words stay, since the published
    error rates of the corpus are computed with them.
    """
    return " ".join(published.lower().split())


class SentencesByLanguage(Corpus):
    """One file per language, normalised, with a sentence on each line; ids are line numbers."""

    splits = ("train",)
    utterances_per_shard = LINES_PER_SHARD
    ids_are_line_numbers = True

    def text(self, line: str, language: str) -> str:
        """Normalises a line; by default it is only put in lower case."""
        return lower_case(line)

    @abc.abstractmethod
    def files(self, source: Path) -> Mapping[str, Path]:
        """Returns the file of each available language, plain or gzipped."""

    def configs(self, source: Path, languages: Sequence[str] = ()) -> list[str]:
        """Lists the languages; see `Corpus`."""
        return select(list(self.files(source)), languages, source, "text files")

    def utterances(self, source: Path, config: str, issues: IssueLog) -> Iterator[Utterance]:
        """Yields the lines of a language; see `Corpus`."""
        for number, line in tables.lines(self.files(source)[config]):
            yield Utterance(
                id=str(number),
                split="train",
                language=config,
                text=self.text(line, config),
                raw_text=line,
                required=("text",),
            )


_JSON = (".jsonl", ".json")
_SUFFIXES = tuple(f"{name}{gzipped}" for name in (".txt", *_JSON) for gzipped in ("", ".gz"))
_NAMED = re.compile(r".+\.([a-z]{2,3})")
_MC4 = re.compile(r"c4-([a-z]{2,3})(?:-validation)?\.tfrecord-.*\.json\.gz")
# Codes of mC4 that ISO 639-1 has replaced or does not have.
_ISO_CODES = {"iw": "he", "fil": "tl", "jw": "jv", "in": "id"}


class TextFiles(Corpus):
    """Files of text; a config is a language."""

    name = "text_files"
    title = "a directory of texts: de/*.txt, or de/*.jsonl with a field text, also with .gz; or mC4"
    utterances_per_shard = LINES_PER_SHARD
    ids_are_line_numbers = True
    text_rules = "transcript"

    def configs(self, source: Path, languages: Sequence[str] = ()) -> list[str]:
        """Lists the languages of the directories or files; see `Corpus`."""
        return select_languages(sorted(_files_by_language(source, languages)), languages, source)

    def utterances(self, source: Path, config: str, issues: IssueLog) -> Iterator[Utterance]:
        """Yields the sentences of a language, file by file; see `Corpus`."""
        normalize = find_rules(self.text_rules)
        language = config_language(config)
        for path in _files_by_language(source, [language])[config]:
            split = split_of(path.name)
            file = str(path.relative_to(source))
            for place, text in _documents(path, file, split, issues):
                for number, sentence in enumerate(sentences(text), start=1):
                    yield Utterance(
                        id=f"{place}:{number}",
                        split=split,
                        language=language,
                        text=normalize(sentence, language),
                        raw_text=sentence,
                        required=("text",),
                    )


def _files_by_language(source: Path, requested: Sequence[str]) -> dict[str, list[Path]]:
    """Returns the files of each language, and those of a dialect by themselves if requested."""
    named = {config_name(name) for name in requested if is_language(name)}
    files: dict[str, list[Path]] = {}
    for directory in sorted(path for path in source.iterdir() if path.is_dir()):
        language = _language(directory.name)
        # Directories whose names are not language codes hold something else.
        if not re.fullmatch(r"[a-z]{2,3}", language):
            continue
        dialect = directory.name.lower().replace("-", "_")
        for path in sorted(directory.iterdir()):
            if path.name.endswith(_SUFFIXES) and path.is_file():
                for config in {language, *({dialect} & named)}:
                    files.setdefault(config, []).append(path)
    for root in (source, source / "multilingual"):
        for path in sorted(root.iterdir()) if root.is_dir() else []:
            if match := _MC4.fullmatch(path.name):
                files.setdefault(_language(match[1]), []).append(path)
    for path in sorted(source.iterdir()):
        match = _NAMED.fullmatch(path.name.removesuffix(".gz"))
        # Other files have suffixes of two or three letters, too, many of which are languages.
        if match and _language(match[1]) in (*LANGUAGES, *named) and path.is_file():
            files.setdefault(_language(match[1]), []).append(path)
    return files


def _language(name: str) -> str:
    code = base_language(name)
    return _ISO_CODES.get(code, code)


def _documents(path: Path, file: str, split: str, issues: IssueLog) -> Iterator[tuple[str, str]]:
    """Yields file and line, and text, of each document that is not blank."""
    if not path.name.removesuffix(".gz").endswith(_JSON):
        for number, line in tables.lines(path):
            if line.strip():
                yield f"{file}:{number}", line
        return
    for place, fields in tables.objects(path, issues, split=split, name=file):
        text = fields.get("text")
        if not isinstance(text, str):
            issues.add("bad value", split=split, item=place, detail="no text")
        elif not text.strip():
            issues.add("empty text", split=split, item=place)
        else:
            yield place, text


MAX_CHARACTERS = 256
"""Length of the longest sentence, which takes about 15 to 20 seconds to say in most languages."""

# After a full stop and the quotation marks and brackets that close with it. Between ideographs, and
# in Burmese and Thai, no space follows.
_SENTENCE_END = re.compile(
    r"""(?<=[.!?\u2026\u061f\u06d4\u0964\u0589\u1362])["'\u201d\u2019\u00bb)\]]*\s+"""
    r"""|(?<=[\u3002\uff01\uff1f\u104b])(?!["\u201d\u2019\u300d\u300f\uff09])"""
)

# Vowel signs, accents and joiners belong to the character before them, some vowels in Thai and Lao
# to the one after them.
_JOINS_PREVIOUS = regex.compile(rf"[\p{{M}}{SPELLED_JOINERS}]")
_JOINS_NEXT = regex.compile(rf"[\p{{Logical_Order_Exception}}{SPELLED_JOINERS}]")


def sentences(text: str, max_characters: int = MAX_CHARACTERS) -> Iterator[str]:
    """Splits a text into sentences, and long sentences into pieces.

    A sentence ends at every full stop; after an abbreviation this only makes a piece shorter than
    it could be. Pieces without a letter or digit are joined to their neighbour where there is room.

    Args:
        text: A paragraph or a document. A sentence also ends at the end of a line.
        max_characters: Maximum length of a piece. A longer sentence is split between words, or
            within a word that is even longer.

    Yields:
        Pieces with single spaces. Joined, they are the text, except for white space.
    """
    pending: list[str] = []
    characters, words = 0, False
    for sentence in _sentences(text):
        for piece in _pieces(sentence, max_characters):
            new = any(map(str.isalnum, piece))
            if pending and ((words and new) or characters + 1 + len(piece) > max_characters):
                yield " ".join(pending)
                pending, characters, words = [], 0, False
            characters += len(piece) + bool(pending)
            pending.append(piece)
            words = words or new
    if pending:
        yield " ".join(pending)


def _sentences(text: str) -> Iterator[str]:
    for line in text.splitlines():
        begin = 0
        for match in _SENTENCE_END.finditer(line):
            # Closing quotation marks are matched with the space after them, but are kept.
            end = match.start() + len(match[0].rstrip())
            if sentence := " ".join(line[begin:end].split()):
                yield sentence
            begin = match.end()
        if sentence := " ".join(line[begin:].split()):
            yield sentence


def _pieces(sentence: str, max_characters: int) -> Iterator[str]:
    while len(sentence) > max_characters:
        # A space right after the last character that fits ends a word, too.
        end = sentence.rfind(" ", 1, max_characters + 1)
        end = _between_letters(sentence, max_characters) if end < 0 else end
        yield sentence[:end].rstrip()
        sentence = sentence[end:].lstrip()
    if sentence:
        yield sentence


def _between_letters(sentence: str, end: int) -> int:
    """Returns the last index up to `end` that does not separate a letter from its signs."""
    for place in range(end, 0, -1):
        before, after = sentence[place - 1], sentence[place]
        if not (_JOINS_NEXT.match(before) or _JOINS_PREVIOUS.match(after)):
            return place
    return end


_CODE = r"[a-z]{2,3}(?:[-_][A-Z]{2})?"
_SIDE = re.compile(rf"(.+)\.({_CODE})-({_CODE})\.({_CODE})(\.gz)?")


class ParallelText(Corpus):
    """Pairs of files; a config is a pair of languages, translated from the first to the second."""

    name = "parallel_text"
    title = "a directory of translated texts: train.de-en.de and train.de-en.en, also with .gz"
    utterances_per_shard = LINES_PER_SHARD
    ids_are_line_numbers = True
    text_rules = "transcript"

    def configs(self, source: Path, languages: Sequence[str] = ()) -> list[str]:
        """Lists the pairs of languages of the files, in their direction; see `Corpus`.

        The other direction has to be requested.

        Raises:
            UserError: A pair is not available, a file has no counterpart, or a language is unknown.
        """
        pairs = _pairs(source)
        available = sorted({f"{pair.first}_{pair.second}" for pair in pairs})
        if languages:
            available += sorted({f"{pair.second}_{pair.first}" for pair in pairs} - set(available))
        requested = [name.replace("-", "_") for name in languages]
        selected = select(available, requested, source, "pairs of languages")
        for name in selected:
            for language in name.split("_"):
                normalize_language(language)
        return selected

    def utterances(self, source: Path, config: str, issues: IssueLog) -> Iterator[Utterance]:
        """Yields the lines of a pair of languages, file by file; see `Corpus`."""
        language, _, target = config.partition("_")
        normalize = find_rules(self.text_rules)
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
                    text=normalize(line, language),
                    raw_text=line.strip(),
                    translation=" ".join(translation.split()),
                    required=("text", "translation"),
                )


@dataclasses.dataclass(frozen=True)
class _Pair:
    """Two files whose lines translate each other.

    Attributes:
        stem: First part of their names, such as `train`.
        name: Common part of their names, such as `train.de-en`.
        first: Language of the first file.
        second: Language of the second file.
        paths: Paths of both files.
    """

    stem: str
    name: str
    first: str
    second: str
    paths: tuple[Path, Path]


def _pairs(source: Path) -> list[_Pair]:
    """Returns all pairs of files, in the order of their names.

    Raises:
        UserError: A file has no counterpart.
    """
    files: dict[tuple[str, str, str], dict[str, Path]] = {}
    for path in sorted(source.iterdir()):
        match = _SIDE.fullmatch(path.name)
        if match and match[4] in (match[2], match[3]) and path.is_file():
            files.setdefault((match[1], match[2], match[3]), {}).setdefault(match[4], path)
    pairs = []
    for (stem, first, second), sides in files.items():
        name = f"{stem}.{first}-{second}"
        for side in (first, second):
            if side not in sides:
                raise UserError(
                    f"there is no file {source / name}.{side}; put it beside the other."
                )
        languages = base_language(first), base_language(second)
        pairs.append(_Pair(stem, name, *languages, (sides[first], sides[second])))
    return pairs


def _lines(pair: _Pair) -> Iterator[tuple[str, str]]:
    """Yields each line of the first file with its translation.

    Raises:
        UserError: One file has more lines, so that lines after a missing one would not match.
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
