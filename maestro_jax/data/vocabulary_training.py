"""Vocabularies that are trained on the texts of prepared tasks, with a record of how."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from maestro_jax.data import byte_vocabulary
from maestro_jax.data.data_scope import data_scope
from maestro_jax.data.task_features import PreparedVocabulary
from maestro_jax.data.task_listing import is_prepared, registered_tasks
from maestro_jax.data.vocabularies import (
    UNK_ID,
    TokenVocabulary,
    train_sentencepiece,
    write_atomically,
)
from maestro_jax.data.vocabulary_sampling import plan, read, text_sources
from maestro_jax.errors import UserError
from maestro_jax.progress import Progress

KINDS = ("unigram", "bpe", "char", "byte")
_SHOWN = 1000  # Sentences of each language on which the result is measured.


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
    """

    tasks: tuple[str, ...] = ()
    kind: str = "unigram"
    size: int = 4096
    temperature: float = 3.0
    sentences: int = 1_000_000
    coverage: float = 1.0

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            UserError: One is out of range.
        """
        if self.kind not in KINDS:
            raise UserError(f"{self.kind!r} is not a kind of vocabulary: {', '.join(KINDS)}.")
        if not self.temperature > 0:
            raise UserError(f"the temperature is {self.temperature}; it must be above 0.")
        if not 0.9 <= self.coverage <= 1.0:
            raise UserError(f"the coverage is {self.coverage}; it must be from 0.9 to 1.")
        for name in ("size", "sentences"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be above 0.")


@dataclasses.dataclass(frozen=True)
class LanguageRow:
    """What became of a language.

    Attributes:
        language: ISO 639-1 code.
        sentences: How many there are for training.
        sampled: How many were read; more than there are where some were read repeatedly.
        empty: How many of those were empty.
        tokens_a_word: Over the first sentences of the sample.
        unknown_percent: Tokens in a hundred that the vocabulary cannot write, over the same.
    """

    language: str
    sentences: int
    sampled: int
    empty: int
    tokens_a_word: float
    unknown_percent: float


@dataclasses.dataclass(frozen=True)
class Trained:
    """A vocabulary.

    Attributes:
        path: Of its file.
        size: Pieces, the three special ones counted.
        tasks: On whose texts it was trained.
        languages: What it does to each language; nothing for bytes.
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
        name: Of the vocabulary.
        request: What is asked for.
        data_dir: The data root; the user's default if there is none.
        overwrite: Whether to make again what is there.

    Returns:
        The vocabulary; what is there and was made in the same way is not made again.

    Raises:
        UserError: The name is none, another vocabulary has it, a task is unknown, not prepared or
            without texts, or there is too little text for a vocabulary of that size.
    """
    if not name.isidentifier():
        raise UserError(f"{name!r} is no name for a vocabulary; use letters, digits and _.")
    with data_scope(data_dir) as root:
        path = root / "vocabularies" / f"{name}.model"
        record = path.with_suffix(".json")
        if request.kind != "byte":
            tasks = request.tasks or _readers(f"vocabularies/{path.name}", name)
            request = dataclasses.replace(request, tasks=tasks)
        asked = json.loads(json.dumps(dataclasses.asdict(request)))
        if path.exists() and not overwrite:
            return _there(path, record, asked)
        trained = _train(path, request)
        content = {"request": asked, "languages": [vars(row) for row in trained.languages]}
        write_atomically(record, (json.dumps(content, indent=2) + "\n").encode())
        return trained


def _readers(file: str, name: str) -> tuple[str, ...]:
    """The prepared tasks that read a vocabulary which may not be there yet."""
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
            f"no task reads a vocabulary {name!r}; say whose texts to train it on: --task TASK."
        )
    ready = tuple(task.name for task in reading if is_prepared(task) and "train" in task.splits)
    if not ready:
        raise UserError(
            f"none of the {len(reading)} tasks that read the vocabulary {name!r} is prepared; "
            "prepare a corpus first (maestro prepare --help), or name tasks: --task TASK."
        )
    return ready


def _there(path: Path, record: Path, asked: dict[str, object]) -> Trained:
    """What is known of a vocabulary that is there, if it is the one that is asked for."""
    made = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    before = made.get("request", {})
    different = [key for key, value in asked.items() if before.get(key) != value]
    if different:
        found = {key: before[key] for key in different if key in before}
        if len(found.get("tasks", ())) > 3:
            found["tasks"] = f"{len(found['tasks'])} others"
        values = ", ".join(f"{key} {value!r}" for key, value in found.items())
        raise UserError(
            f"{path} was made otherwise ({values or 'it has no record'}); models that were trained "
            "with it need it: take another name, or --overwrite it."
        )
    rows = tuple(LanguageRow(**row) for row in made["languages"])
    size = TokenVocabulary.load(path).vocab_size
    return Trained(path, size, tuple(made["request"]["tasks"]), rows, fresh=False)


def _train(path: Path, request: VocabularyRequest) -> Trained:
    if request.kind == "byte":
        write_atomically(path, byte_vocabulary.CONTENT)
        return Trained(path, TokenVocabulary.load(path).vocab_size, request.tasks, ())
    samples = plan(text_sources(request.tasks), request.sentences, request.temperature)
    shown: dict[str, list[str]] = {sample.language: [] for sample in samples}
    empty = dict.fromkeys(shown, 0)
    total = sum(sample.taken for sample in samples)
    with Progress(total, f"reading {len(samples)} languages") as progress:

        def see(language: str, text: str) -> None:
            progress.update()
            if not text.strip():
                empty[language] += 1
            elif len(shown[language]) < _SHOWN:
                shown[language].append(text)

        sentences = list(read(samples, see))
    # SentencePiece does not tell how far it is.
    with Progress(1, f"training the vocabulary on {total} sentences") as progress:
        vocabulary = train_sentencepiece(
            sentences, path, request.size, request.kind, coverage=request.coverage
        )
        progress.update()
    rows = tuple(
        LanguageRow(
            language=sample.language,
            sentences=sample.sentences,
            sampled=sample.taken,
            empty=empty[sample.language],
            **_measured(vocabulary, shown[sample.language]),
        )
        for sample in samples
    )
    return Trained(path, vocabulary.vocab_size, request.tasks, rows)


def _measured(vocabulary: TokenVocabulary, texts: Sequence[str]) -> dict[str, float]:
    """How long a language becomes, and how much of it is lost."""
    words = tokens = unknown = 0
    for text in texts:
        ids = vocabulary.encode(text)
        words += len(text.split())
        tokens += len(ids)
        unknown += ids.count(UNK_ID)
    return {
        "tokens_a_word": round(tokens / max(words, 1), 2),
        "unknown_percent": round(100.0 * unknown / max(tokens, 1), 3),
    }
