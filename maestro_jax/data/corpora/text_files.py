"""Text without speech: mC4, or any files of text.

    de/*.txt de/*.jsonl de/*.json       one directory a language; each file plain or with .gz
    multilingual/c4-de.tfrecord-00000-of-02048.json.gz      as mC4 comes
    news-commentary-v8.en.gz            as the texts of TED-LIUM come, and many others

A line of a text file is a paragraph or a sentence. A line of a JSON file is an object whose `text`
is a document. Both are cut into sentences, which become utterances. A file is of the validation or
test split if a word of its name says so (`validation.txt`, `c4-de-validation.tfrecord-...`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from maestro_jax.data.corpora import tables
from maestro_jax.data.corpora.corpus import Corpus, choose_languages
from maestro_jax.data.corpora.problems import Problems
from maestro_jax.data.corpora.sentences import sentences
from maestro_jax.data.corpora.text_splits import files_in, split_of
from maestro_jax.data.corpora.utterance import Utterance
from maestro_jax.text.languages import LANGUAGES
from maestro_jax.text.normalizers import base_language
from maestro_jax.text.spoken_forms import find_rules

_JSON = (".jsonl", ".json")
_ENDINGS = (".txt", *_JSON)
_NAMED = re.compile(r".+\.([a-z]{2,3})")
_MC4 = re.compile(r"c4-([a-z]{2,3})(?:-validation)?\.tfrecord-.*\.json\.gz")
# Codes of mC4 that ISO 639-1 has replaced or does not have.
_OTHER_CODES = {"iw": "he", "fil": "tl", "jw": "jv", "in": "id"}


class TextFiles(Corpus):
    """Files of text; a config is a language."""

    name = "text_files"
    title = "a directory of texts: de/*.txt, or de/*.jsonl with a field text, also with .gz; or mC4"
    part_utterances = 1 << 14
    numbered = True
    rules = "transcript"

    def configs(self, source: Path, languages: Sequence[str] = ()) -> list[str]:
        """The languages of the directories or files; see `Corpus`."""
        return choose_languages(sorted(_files(source)), languages, source)

    def utterances(self, source: Path, config: str, problems: Problems) -> Iterator[Utterance]:
        """The sentences of a language, file by file; see `Corpus`."""
        normalized = find_rules(self.rules)
        for path in _files(source)[config]:
            split = split_of(path.name)
            file = str(path.relative_to(source))
            for place, text in _documents(path, file, split, problems):
                for number, sentence in enumerate(sentences(text), start=1):
                    yield Utterance(
                        id=f"{place}:{number}",
                        split=split,
                        language=config,
                        text=normalized(sentence, config),
                        raw_text=sentence,
                        needs=("text",),
                    )


def _files(source: Path) -> dict[str, list[Path]]:
    """The files of every language."""
    found: dict[str, list[Path]] = {}
    for directory in sorted(path for path in source.iterdir() if path.is_dir()):
        language = _language(directory.name)
        # A language has a code; other directories hold something else.
        if re.fullmatch(r"[a-z]{2,3}", language) and (files := files_in(directory, _ENDINGS)):
            found.setdefault(language, []).extend(files)
    for root in (source, source / "multilingual"):
        for path in files_in(root, (".json",)) if root.is_dir() else []:
            if match := _MC4.fullmatch(path.name):
                found.setdefault(_language(match[1]), []).append(path)
    for path in sorted(source.iterdir()):
        match = _NAMED.fullmatch(path.name.removesuffix(".gz"))
        # Other files have endings of as many letters.
        if match and _language(match[1]) in LANGUAGES and path.is_file():
            found.setdefault(_language(match[1]), []).append(path)
    return found


def _language(name: str) -> str:
    code = base_language(name)
    return _OTHER_CODES.get(code, code)


def _documents(path: Path, file: str, split: str, problems: Problems) -> Iterator[tuple[str, str]]:
    """Each document that is not blank: its file and line, and its text."""
    if not path.name.removesuffix(".gz").endswith(_JSON):
        for number, line in tables.lines(path):
            if line.strip():
                yield f"{file}:{number}", line
        return
    for place, fields in tables.objects(path, problems, split=split, name=file):
        text = fields.get("text")
        if not isinstance(text, str):
            problems.add("bad value", split=split, item=place, detail="no text")
        elif not text.strip():
            problems.add("empty text", split=split, item=place)
        else:
            yield place, text
