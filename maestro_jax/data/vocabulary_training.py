"""Vocabularies that are trained on the texts of prepared tasks, with a record of how."""

from __future__ import annotations

import collections
import dataclasses
import json
import logging
import os
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sacrebleu.metrics import BLEU

from maestro_jax.data.data_dir import data_scope, local_data_root
from maestro_jax.data.stream_tasks import PreparedVocabulary
from maestro_jax.data.task_registry import is_prepared, registered_tasks
from maestro_jax.data.vocabulary_sampling import plan, read, text_sources
from maestro_jax.errors import UserError
from maestro_jax.files import write_atomically
from maestro_jax.progress import Progress
from maestro_jax.scoring.metrics import bleu_tokenizer, get_metric
from maestro_jax.text.characters import spelled
from maestro_jax.text.languages import error_rate_of, writes_spaces
from maestro_jax.text.vocabularies import (
    BYTE_MODEL,
    LOWEST_COVERAGE,
    UNK_ID,
    Vocabulary,
    load_vocabulary,
    train_sentencepiece,
)

KINDS = ("unigram", "bpe", "char", "byte")

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class VocabularyRequest:
    """What is asked for.

    Attributes:
        tasks: Names of tasks and mixtures; if there are none, all prepared tasks that would read
            this vocabulary.
        kind: One of `KINDS`.
        size: Pieces, the three special ones counted; 259 for bytes, whatever is asked for.
        temperature: Above 1, small languages are drawn more often than their size says.
        sentences: The size of the sample, which is held in memory.
        coverage: The share of the letters of the sample that must have pieces of their own.
        byte_fallback: Whether other letters are written as UTF-8 bytes, 256 further pieces.
    """

    tasks: tuple[str, ...] = ()
    kind: str = "unigram"
    size: int = 4096
    temperature: float = 3.0
    sentences: int = 1_000_000
    coverage: float = 1.0
    byte_fallback: bool = False

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            UserError: One is out of range.
        """
        if self.kind not in KINDS:
            raise UserError(f"{self.kind!r} is not a kind of vocabulary: {', '.join(KINDS)}.")
        if not self.temperature > 0:
            raise UserError(f"the temperature is {self.temperature}; it must be above 0.")
        if not LOWEST_COVERAGE <= self.coverage <= 1.0:
            raise UserError(
                f"the coverage is {self.coverage}; it must be from {LOWEST_COVERAGE} to 1."
            )
        for name in ("size", "sentences"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be above 0.")


@dataclasses.dataclass(frozen=True)
class Trained:
    """A vocabulary.

    Attributes:
        path: Path of its file.
        size: Pieces, the three special ones counted.
        tasks: On whose texts it was trained.
        languages: Measures of each language; empty for bytes.
        fresh: Whether it was made by this call, and not there already.
    """

    path: Path
    size: int
    tasks: tuple[str, ...]
    languages: tuple[LanguageRow, ...]
    fresh: bool = True


def train_vocabulary(
    name: str,
    request: VocabularyRequest,
    *,
    data_dir: str | Path | None = None,
    overwrite: bool = False,
) -> Trained:
    """Makes `vocabularies/NAME.model` below the data root, and `NAME.json` with how it was made.

    The result depends on the request and the prepared data alone.

    Args:
        name: Name of the vocabulary.
        request: Kind, size and data of the vocabulary.
        data_dir: The data root; the user's default if there is none.
        overwrite: Whether to replace an existing vocabulary.

    Returns:
        The vocabulary; what is there and was made in the same way is not made again.

    Raises:
        UserError: The name is none, another vocabulary has it, a task is unknown, not prepared or
            without texts, or there is too little text for a vocabulary of that size.
    """
    if not name.isidentifier():
        raise UserError(f"{name!r} is not a name; use letters, digits and _.")
    with data_scope(data_dir) as root:
        path = local_data_root(root) / "vocabularies" / f"{name}.model"
        record = path.with_suffix(".json")
        if request.kind != "byte":
            tasks = request.tasks or _readers(f"vocabularies/{path.name}", name)
            request = dataclasses.replace(request, tasks=tasks)
        requested = json.loads(json.dumps(dataclasses.asdict(request)))
        if path.exists() and not overwrite:
            trained = _load_existing(path, record, requested)
        else:
            trained = _train(path, request)
            content = {"request": requested, "languages": [vars(row) for row in trained.languages]}
            write_atomically(record, (json.dumps(content, indent=2) + "\n").encode())
        for row in trained.languages:
            if warning := row.warning():
                log.warning("warning: %s", warning)
        return trained


def _readers(file: str, name: str) -> tuple[str, ...]:
    """Returns the prepared tasks that read a vocabulary, which may not exist yet."""
    reading = [
        task
        for task in registered_tasks()
        if any(
            isinstance(feature.vocabulary, PreparedVocabulary) and feature.vocabulary.file == file
            for feature in task.output_features.values()
        )
    ]
    if not reading:
        raise UserError(
            f"no task uses the vocabulary {name!r}; name tasks to train it on: --task TASK."
        )
    ready = tuple(task.name for task in reading if is_prepared(task) and "train" in task.splits)
    if not ready:
        raise UserError(
            f"none of the {len(reading)} tasks that read the vocabulary {name!r} is prepared; "
            "prepare a corpus first (maestro prepare --help), or name tasks: --task TASK."
        )
    return ready


def _load_existing(path: Path, record: Path, requested: dict[str, object]) -> Trained:
    """Reads the record of an existing vocabulary, if it is the requested one."""
    made = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    before = made.get("request", {})
    # What earlier versions could not be asked for, they did not do.
    defaults = {"byte_fallback": False} if before else {}
    changed = [key for key, value in requested.items() if {**defaults, **before}.get(key) != value]
    if changed:
        differences = {key: before[key] for key in changed if key in before}
        if len(differences.get("tasks", ())) > 3:
            differences["tasks"] = f"{len(differences['tasks'])} others"
        values = ", ".join(f"{key} {value!r}" for key, value in differences.items())
        raise UserError(
            f"{path} was trained with other options ({values or 'it has no record'}), and models "
            "may need it; choose another name, or pass --overwrite."
        )
    rows = tuple(LanguageRow.from_json(row) for row in made["languages"])
    if any(row.changed is None for row in rows):
        log.warning(
            "%s was made by an earlier version, whose vocabularies may rewrite what they spell "
            "(joiners of Persian, full-width punctuation); --overwrite makes it again, for new "
            "models",
            path,
        )
    size = load_vocabulary(path).vocab_size
    return Trained(path, size, tuple(made["request"]["tasks"]), rows, fresh=False)


def _train(path: Path, request: VocabularyRequest) -> Trained:
    if request.kind == "byte":
        write_atomically(path, BYTE_MODEL)
        return Trained(path, load_vocabulary(path).vocab_size, request.tasks, ())
    samples = plan(text_sources(request.tasks), request.sentences, request.temperature)
    texts: dict[str, list[str]] = {sample.language: [] for sample in samples}
    empty = dict.fromkeys(texts, 0)
    total = sum(sample.taken for sample in samples)
    with Progress(total, "reading the texts") as progress:

        def see(language: str, text: str) -> None:
            progress.update()
            if text.strip():
                texts[language].append(text)
            else:
                empty[language] += 1

        sentences = list(read(samples, see))
    # SentencePiece does not tell how far it is.
    with Progress(1, f"training the vocabulary on {total} sentences") as progress:
        vocabulary = train_sentencepiece(
            sentences,
            path,
            request.size,
            request.kind,
            coverage=request.coverage,
            byte_fallback=request.byte_fallback,
        )
        progress.update()
    rows = []
    with Progress(len(samples), "measuring the languages") as progress:
        for sample in samples:
            rows.append(
                LanguageRow(
                    language=sample.language,
                    sentences=sample.sentences,
                    sampled=sample.taken,
                    empty=empty[sample.language],
                    **measured(vocabulary, texts[sample.language], sample.language),
                )
            )
            progress.update()
    return Trained(path, vocabulary.vocab_size, request.tasks, tuple(rows))


_EXAMPLES = 3  # Texts that are shown where some are not given back.
_EXAMPLE_LETTERS = 60


_EARLIER_FIELDS = {"tokens_a_word": "tokens_per_word"}


@dataclasses.dataclass(frozen=True)
class LanguageRow:
    """What became of a language.

    Attributes:
        language: ISO 639-1 code.
        sentences: Number of sentences for training.
        sampled: Number of sentences read; more than there are if some were read repeatedly.
        empty: Number of those that were empty.
        tokens_per_word: Over the sample, as are all that follow; each text counts once.
        unknown_percent: Tokens in a hundred that the vocabulary cannot write.
        changed: Texts that are another text once they are encoded and decoded; white space and
            Unicode's forms NFC and NFD make no difference.
        round_trip_error: The word error rate of the decoded texts in percent; the character error
            rate of a language without spaces.
        round_trip_bleu_loss: By how much their BLEU is below 100, that of the texts themselves.
        lost: Characters that do not come back, the most frequent first.
        examples: Some texts, or parts of them, before and after.
    """

    language: str
    sentences: int
    sampled: int
    empty: int
    tokens_per_word: float
    unknown_percent: float
    # None of a vocabulary that was made before they were measured.
    changed: int | None = None
    round_trip_error: float | None = None
    round_trip_bleu_loss: float | None = None
    lost: tuple[str, ...] = ()
    examples: tuple[tuple[str, str], ...] = ()

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> LanguageRow:
        """Reads what `dataclasses.asdict` made, in this version or an earlier one."""
        values = {_EARLIER_FIELDS.get(name, name): value for name, value in values.items()}
        examples = tuple((before, after) for before, after in values.get("examples", ()))
        return cls(**{**values, "lost": tuple(values.get("lost", ())), "examples": examples})

    def warning(self) -> str | None:
        """Describes in one line what the vocabulary does not give back; None for nothing."""
        if not self.changed:
            return None
        metric = error_rate_of(self.language).upper()
        text = (
            f"{self.language}: the vocabulary does not give back {self.changed} texts as they are "
            f"({metric} {self.round_trip_error}, BLEU {self.round_trip_bleu_loss} lower)"
        )
        if self.lost:
            text += f", for want of {', '.join(map(_named, self.lost))}"
        return text + "".join(f"; {before!r} becomes {after!r}" for before, after in self.examples)


def measured(vocabulary: Vocabulary, texts: Iterable[str], language: str) -> dict[str, Any]:
    """Measures how long a language becomes, and how much of it is lost.

    Args:
        vocabulary: The vocabulary.
        texts: Texts of the language; each counts once.
        language: ISO 639-1 code.

    Returns:
        The fields of a `LanguageRow` that say so.
    """
    words = tokens = unknown = units = 0
    before, changed = [], []
    lost: collections.Counter[str] = collections.Counter()
    for text in dict.fromkeys(texts):
        ids = vocabulary.encode(text)
        words += len(text.split())
        tokens += len(ids)
        unknown += ids.count(UNK_ID)
        expected, decoded_text = spelled(text), spelled(vocabulary.decode(ids))
        before.append(expected)
        units += len(expected.split() if writes_spaces(language) else expected.replace(" ", ""))
        if decoded_text != expected:
            changed.append((expected, decoded_text))
            lost += collections.Counter(expected) - collections.Counter(decoded_text)
    error = bleu_loss = 0.0
    if changed:
        after = dict(changed)
        error_rate = get_metric(error_rate_of(language))
        edits = error_rate.statistics(list(after), list(after.values()), language)
        errors = edits[:, :3].sum()
        error = 100.0 * float(errors) / max(units, 1)
        # The effective order: a text of fewer than four words has a BLEU of 100 with itself.
        bleu = BLEU(tokenize=bleu_tokenizer(language), effective_order=True)
        decoded = [after.get(text, text) for text in before]
        bleu_loss = 100.0 - bleu.corpus_score(decoded, [before]).score
    return {
        "tokens_per_word": round(tokens / max(words, 1), 2),
        "unknown_percent": round(100.0 * unknown / max(tokens, 1), 3),
        "changed": len(changed),
        "round_trip_error": _rounded(error),
        "round_trip_bleu_loss": _rounded(bleu_loss),
        "lost": tuple(letter for letter, _ in lost.most_common(10)),
        "examples": tuple(_around_the_change(*pair) for pair in changed[:_EXAMPLES]),
    }


def _rounded(percent: float) -> float:
    """Rounds to two digits; what is above 0 stays above it."""
    return round(percent, 2) or float(f"{percent:.1g}")


def _around_the_change(before: str, after: str) -> tuple[str, str]:
    """Returns both texts from shortly before they differ."""
    start = max(0, len(os.path.commonprefix([before, after])) - _EXAMPLE_LETTERS // 3)
    return before[start : start + _EXAMPLE_LETTERS], after[start : start + _EXAMPLE_LETTERS]


def _named(letter: str) -> str:
    """Names a character, visible or not: `U+200C ZERO WIDTH NON-JOINER`."""
    name = f"U+{ord(letter):04X} {unicodedata.name(letter, '')}".strip()
    return f"{letter} ({name})" if letter.isprintable() and letter.strip() else name
