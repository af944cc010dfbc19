"""Batches of a test set, every example once, with the strings that scoring needs.

Tasks of this project name ids, languages and references in strings. A task written for T5X names
what its author needed: ids are then numbers, languages those of the language ids, references what
the tokens spell.
"""

from __future__ import annotations

import collections
import functools
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from maestro_jax.batches import Mixture
from maestro_jax.data.data_dir import data_scope
from maestro_jax.data.loader import hide_accelerators
from maestro_jax.data.padding import empty_batch, pad_example
from maestro_jax.data.stream_tasks import UNDETERMINED, language_of, target_language_of
from maestro_jax.data.task_readers import check_features
from maestro_jax.data.task_registry import get_task_or_mixture, task_languages, tasks_of
from maestro_jax.errors import UserError
from maestro_jax.text.languages import UNKNOWN_LANGUAGE, LanguageTable

_log = logging.getLogger(__name__)


def _evaluated_language(
    languages: LanguageTable, warned: set[str], field: str, strings: Mapping[str, str]
) -> int:
    """Returns the id of a row's language; a model may be scored in one that it never saw.

    Raises:
        UserError: A model shall write a language that it does not know.
    """
    code = strings[field]
    if code in ("", UNDETERMINED):
        return UNKNOWN_LANGUAGE
    if field == "language" and code not in languages:
        if code not in warned:
            warned.add(code)
            _log.warning(
                "the model was not trained with the language %r, so it is not told the language",
                code,
            )
        return UNKNOWN_LANGUAGE
    return languages.index(code)


def evaluation_batches(
    names: str | Mixture | Sequence[str],
    split: str,
    batch_size: int,
    audio_samples: int,
    data_dir: Path | str | None = None,
    *,
    text_tokens: int = 0,
    translation_tokens: int = 0,
    languages: LanguageTable | None = None,
    keep_examples: bool = False,
) -> Iterator[tuple[dict[str, np.ndarray], list[dict[str, Any]]]]:
    """Yields every example of a split exactly once, in order: task after task.

    Args:
        names: Name of a seqio task or mixture, or names of several tasks of one stream.
        split: Its split.
        batch_size: Rows of every batch; the last one is filled up with empty rows.
        audio_samples: The padded length of audio; 0 leaves audio out.
        data_dir: The data root; None for the user's default.
        text_tokens: The padded length of texts; 0 leaves their tokens out.
        translation_tokens: The padded length of translations; 0 leaves their tokens out.
        languages: The ids of languages; by default as in `StreamLoader`.
        keep_examples: Whether the metadata of a row hold all features of its task, as ``example``.

    Returns:
        An iterator of features (audio int16 `[batch, samples]`, tokens int32 `[batch, tokens]`,
        their lengths and the language ids int32 `[batch]`; length 0 in empty rows) and the metadata
        of the rows that hold an example: strings id, task, text, raw_text, translation, language,
        target_language and speaker, empty where the corpus has none; what a task does not name is
        derived as `maestro_jax.data.evaluation_batches.ScoredExamples` says. An over-long example
        keeps its metadata, while its row is empty, so that it counts as an error and not as absent.

    Raises:
        UserError: An unknown task or split, data that are not prepared, features of a wrong type,
            or examples with an empty id or the same.
    """
    hide_accelerators()
    mixtures = [names] if isinstance(names, str | Mixture) else list(names)
    names_text = ", ".join(repr(str(mixture)) for mixture in mixtures)
    everything = [task for name in mixtures for task in tasks_of(get_task_or_mixture(name))]
    tasks = [task for task in everything if split in task.splits]
    if not tasks:
        available = sorted({split for task in everything for split in task.splits})
        raise UserError(f"{names_text} has no split {split!r}; it has {available}.")
    given = tasks[0].output_features
    requested = {"audio": audio_samples, "text": text_tokens, "translation": translation_tokens}
    limits = {name: limit for name, limit in requested.items() if limit and name in given}
    identities = ("language", "target_language") if "translation" in given else ("language",)
    if not limits:
        raise UserError(
            f"{names_text} gives {', '.join(given)}; "
            "set the padded length of at least one of audio, text or translation that it has."
        )
    with data_scope(data_dir):
        datasets = [
            (
                task,
                task.get_dataset(
                    split=split, shuffle=False, trim_output_features=False, try_in_mem_cache=False
                ),
            )
            for task in tasks
        ]
    for task, dataset in datasets:
        check_features(task.name, dataset.element_spec, tuple(limits), identities)
    table = languages or LanguageTable().extended(task_languages(tasks))
    return _evaluation_batches(datasets, limits, identities, batch_size, table, keep_examples)


def _evaluation_batches(
    datasets: list[tuple[seqio.Task, tf.data.Dataset]],
    limits: dict[str, int],
    identities: tuple[str, ...],
    batch_size: int,
    languages: LanguageTable,
    keep_examples: bool,
) -> Iterator[tuple[dict[str, np.ndarray], list[dict[str, Any]]]]:
    over_long: collections.Counter[str] = collections.Counter()
    features = empty_batch(limits, identities, batch_size)
    metadata: list[dict[str, Any]] = []
    scored = ScoredExamples(languages)
    language_id = functools.partial(_evaluated_language, languages, set())
    for task, dataset in datasets:
        owner = task.name
        for example in dataset.as_numpy_iterator():
            strings = scored.strings(task, example)
            row = {**example, **{name: language_id(name, strings) for name in identities}}
            over_long[owner] += pad_example(features, len(metadata), row, limits, identities)
            kept = {"example": example} if keep_examples else {}
            metadata.append({**strings, **kept})
            if len(metadata) == batch_size:
                yield features, metadata
                features, metadata = empty_batch(limits, identities, batch_size), []
        if over_long[owner]:
            _log.warning(
                "%d examples of %r are longer than %s: they are scored as empty.",
                over_long[owner],
                owner,
                limits,
            )
    if metadata:
        yield features, metadata


class ScoredExamples:
    """The strings of the examples of some tasks, which are one test set, in the order of reading.

    An instance is for one pass: it refuses an id that it has seen.

    Args:
        languages: Ids of languages; by default those of `LANGUAGES`.
    """

    def __init__(self, languages: LanguageTable | None = None) -> None:
        self._languages = languages or LanguageTable()
        self._task: seqio.Task | None = None
        self._number = 0
        self._told: set[tuple[str, str]] = set()
        self._seen: dict[tuple[str, str, str], tuple[str, int]] = {}

    def strings(self, task: seqio.Task, example: Mapping[str, Any]) -> dict[str, str]:
        """Returns the strings of the next example.

        Args:
            task: Its task; all examples of a task come one after the other.
            example: All its features, as NumPy arrays.

        Returns:
            task, id, text, raw_text, translation, language, target_language and speaker; empty what
            there is not. An example without a feature `id` is numbered within its task.

        Raises:
            UserError: An id is empty, or that of another example of this language; a language id
                is none.
        """
        if task is not self._task:
            self._task, self._number = task, 0
        number = self._number
        self._number += 1
        strings = {
            "task": task.name,
            "id": self._id(task, example, number),
            "text": self._reference(task, example, "text"),
            "raw_text": _string(example, "raw_text"),
            "translation": self._reference(task, example, "translation"),
            "language": self._language(task, example),
            "target_language": target_language_of(task, example, self._languages),
            "speaker": _string(example, "speaker"),
        }
        key = (strings["language"], strings["target_language"], strings["id"])
        other, before = self._seen.setdefault(key, (task.name, number))
        if (other, before) != (task.name, number):
            if other == task.name:
                raise UserError(
                    f"examples {before} and {number} of task {task.name!r} have the same id "
                    f"{strings['id']!r}; give each its own id, or remove the feature, and "
                    "examples are numbered."
                )
            raise UserError(
                f"tasks {other!r} and {task.name!r} both have an example {strings['id']!r} in "
                f"{strings['language']!r}; score them separately: --task {other} --task "
                f"{task.name}."
            )
        return strings

    def _id(self, task: seqio.Task, example: Mapping[str, Any], number: int) -> str:
        if "id" not in example:
            return f"{task.name}:{number}"
        value = example["id"]
        try:
            identity = (
                value.decode() if isinstance(value, bytes) else str(np.asarray(value).tolist())
            )
        except UnicodeDecodeError:
            identity = ""
        if not identity.strip() or np.ndim(value):
            raise UserError(
                f"example {number} of task {task.name!r} has the id {identity!r}; give each "
                "example its own id, or remove the feature, and examples are numbered."
            )
        return identity

    def _reference(self, task: seqio.Task, example: Mapping[str, Any], field: str) -> str:
        """Returns the text before it became tokens; if it was not kept, what the tokens spell."""
        for name in (f"{field}_pretokenized", field):
            if isinstance(example.get(name), bytes):
                return example[name].decode()
        if field not in task.output_features or field not in example:
            return ""
        self._tell_once(
            task,
            field,
            f"task {task.name!r} keeps no {field}_pretokenized: its references are what the "
            "vocabulary makes of them",
        )
        ids: Sequence[int] = np.asarray(example[field]).tolist()
        return task.output_features[field].vocabulary.decode(ids)

    def _language(self, task: seqio.Task, example: Mapping[str, Any]) -> str:
        language = language_of(task, example, self._languages)
        if not language:
            self._tell_once(
                task,
                "language",
                f"task {task.name!r} does not say its language; it is scored as {UNDETERMINED!r}, "
                "by words (give its examples the language's code as a string feature 'language')",
            )
        return language or UNDETERMINED

    def _tell_once(self, task: seqio.Task, what: str, message: str) -> None:
        if (task.name, what) not in self._told:
            self._told.add((task.name, what))
            _log.warning("warning: %s", message)


def _string(example: Mapping[str, Any], name: str) -> str:
    value = example.get(name)
    return value.decode() if isinstance(value, bytes) else ""
