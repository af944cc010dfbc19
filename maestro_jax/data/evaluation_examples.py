"""Examples of a test set, every one once, with the strings that scoring needs.

Tasks of this project name ids, languages and references in strings. A task written for T5X names
what its author needed: ids are then numbers, languages those of the language ids, references what
the tokens spell.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from maestro_jax.batches import Mixture
from maestro_jax.data.data_dir import data_scope
from maestro_jax.data.indexed_source import IndexedSource
from maestro_jax.data.loader import hide_accelerators
from maestro_jax.data.stream_tasks import (
    UNDETERMINED,
    language_of,
    target_language_of,
    vocabulary_scope,
)
from maestro_jax.data.task_readers import check_features, open_split
from maestro_jax.data.task_registry import get_task_or_mixture, task_languages, tasks_of
from maestro_jax.errors import UserError
from maestro_jax.text.languages import UNKNOWN_LANGUAGE, LanguageTable
from maestro_jax.text.vocabularies import Vocabulary

_log = logging.getLogger(__name__)

_PREFETCHED = 16
"""Examples that are read ahead, about a batch of them: minutes of speech take a few megabytes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationExample:
    """One utterance or text of a test set.

    Attributes:
        index: Its place among the examples of its task.
        strings: task, id, text, raw_text, translation, language, target_language and speaker;
            empty where the corpus has none.
        features: All features of its task: audio int16 `[samples]`, tokens int32 `[tokens]`.
        languages: Ids of the features `language` and, of a translation, `target_language`.
    """

    index: int
    strings: Mapping[str, str]
    features: Mapping[str, Any]
    languages: Mapping[str, int]


def evaluation_tasks(names: str | Mixture | Sequence[str], split: str) -> list[seqio.Task]:
    """Returns the tasks of some mixtures that have a split.

    Raises:
        UserError: A task or mixture is unknown, or none has the split.
    """
    mixtures = [names] if isinstance(names, str | Mixture) else list(names)
    everything = [task for name in mixtures for task in tasks_of(get_task_or_mixture(name))]
    tasks = [task for task in everything if split in task.splits]
    if not tasks:
        available = sorted({split for task in everything for split in task.splits})
        names_text = ", ".join(repr(str(mixture)) for mixture in mixtures)
        raise UserError(f"{names_text} has no split {split!r}; it has {available}.")
    return tasks


def evaluation_lengths(
    names: str | Mixture | Sequence[str], split: str, data_dir: Path | str | None = None
) -> np.ndarray | None:
    """Reads how long the examples of a test set are, from the files of lengths beside the shards.

    Args:
        names: As of `evaluation_examples`.
        split: Its split.
        data_dir: The data root; None for the user's default.

    Returns:
        int32 `[examples, 3]`, see `maestro_jax.data.lengths`; None if a task has no random access,
        so that all its examples would have to be read.

    Raises:
        UserError: An unknown task or split, or data that are not prepared.
    """
    lengths = []
    with data_scope(data_dir):
        for task in evaluation_tasks(names, split):
            opened = open_split(task, split)
            if opened is None:
                return None
            lengths.append(opened.lengths())
    return np.concatenate(lengths)


def evaluation_examples(
    names: str | Mixture | Sequence[str],
    split: str,
    data_dir: Path | str | None = None,
    *,
    features: Sequence[str] = ("audio",),
    languages: LanguageTable | None = None,
    vocabulary: Vocabulary | None = None,
    shard: tuple[int, int] = (0, 1),
    chosen: np.ndarray | None = None,
) -> Iterator[EvaluationExample]:
    """Yields every example of a split, or of a part of it, exactly once, task after task.

    Args:
        names: Name of a seqio task or mixture, or names of several tasks of one stream.
        split: Its split.
        data_dir: The data root; None for the user's default.
        features: Those of `audio`, `text` and `translation` that the examples must have.
        languages: The ids of languages; by default as in `StreamLoader`.
        vocabulary: Vocabulary of a model, in place of the one that the data were prepared with;
            the latter need not be there then.
        shard: Number of a shard, and of shards: a shard of n holds every n-th example of each task.
        chosen: Bool `[examples]`, in the order of `evaluation_lengths`, which must not be None:
            the examples to read, in place of those of a shard.

    Returns:
        An iterator of examples. What a task does not name is derived as `ScoredExamples` says.

    Raises:
        UserError: An unknown task or split, data that are not prepared, features that are missing
            or of a wrong type, or examples with an empty id or the same.
    """
    hide_accelerators()
    tasks = evaluation_tasks(names, split)
    given = tasks[0].output_features
    if missing := [name for name in features if name not in given]:
        raise UserError(
            f"{tasks[0].name!r} gives {', '.join(given)}, but no {missing[0]!r}, which this "
            "evaluation reads."
        )
    identities = ("language", "target_language") if "translation" in given else ("language",)
    datasets = []
    with data_scope(data_dir), vocabulary_scope(vocabulary):
        for number, task in enumerate(tasks):
            if chosen is not None:
                size = task.source.num_input_examples(split)
                places, chosen = np.flatnonzero(chosen[:size]), chosen[size:]
                datasets.append((task, _read_chosen(task, split, places)))
                continue
            # The first examples of the tasks go to different shards, so that sizes even out.
            index, count = (shard[0] + number) % shard[1], shard[1]
            # An indexed source reads the records of the shard alone. Others divide by files, which
            # leaves shards empty where there are fewer files than shards, so all is read.
            own = isinstance(task.source, IndexedSource) and count > 1
            dataset = task.get_dataset(
                split=split,
                shuffle=False,
                trim_output_features=False,
                try_in_mem_cache=False,
                shard_info=seqio.ShardInfo(index, count) if own else None,
            )
            if own or count == 1:
                indices = tf.data.Dataset.counter(index, count)
                dataset = tf.data.Dataset.zip((indices, dataset))
            else:
                dataset = dataset.enumerate().shard(count, index)
            datasets.append((task, dataset))
    for task, dataset in datasets:
        check_features(task.name, dataset.element_spec[1], tuple(features), identities)
    table = languages or LanguageTable().extended(task_languages(tasks))
    return _examples(datasets, identities, table)


def _read_chosen(task: seqio.Task, split: str, places: np.ndarray) -> tf.data.Dataset:
    """Reads and preprocesses some records of a task with random access, numbered."""
    opened = open_split(task, split)
    assert opened is not None
    dataset = opened.dataset(tf.data.Dataset.from_tensor_slices(places))
    dataset = task.preprocess_postcache(task.preprocess_precache(dataset), sequence_length=None)
    return tf.data.Dataset.zip((tf.data.Dataset.from_tensor_slices(places), dataset))


def _examples(
    datasets: list[tuple[seqio.Task, tf.data.Dataset]],
    identities: tuple[str, ...],
    languages: LanguageTable,
) -> Iterator[EvaluationExample]:
    scored = ScoredExamples(languages)
    warned: set[str] = set()
    for task, dataset in datasets:
        # Reading and parsing go on while a batch is decoded. The end of an iterator that is tuned
        # waits, up to seconds, for the thread that tunes it.
        options = tf.data.Options()
        options.autotune.enabled = False
        dataset = dataset.prefetch(_PREFETCHED).with_options(options)
        for number, example in dataset.as_numpy_iterator():
            strings = scored.strings(task, example, int(number))
            yield EvaluationExample(
                index=int(number),
                strings=strings,
                features=example,
                languages={
                    name: _evaluated_language(languages, warned, name, strings)
                    for name in identities
                },
            )


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


class ScoredExamples:
    """The strings of the examples of some tasks, which are one test set, in the order of reading.

    An instance is for one pass: it refuses an id that it has seen.

    Args:
        languages: Ids of languages; by default those of `LANGUAGES`.
    """

    def __init__(self, languages: LanguageTable | None = None) -> None:
        self._languages = languages or LanguageTable()
        self._told: set[tuple[str, str]] = set()
        self._seen: dict[tuple[str, str, str], tuple[str, int]] = {}

    def strings(self, task: seqio.Task, example: Mapping[str, Any], number: int) -> dict[str, str]:
        """Returns the strings of the next example.

        Args:
            task: Its task.
            example: All its features, as NumPy arrays.
            number: Its place among the examples of its task.

        Returns:
            task, id, text, raw_text, translation, language, target_language and speaker; empty what
            there is not. An example without a feature `id` is named by its task and place.

        Raises:
            UserError: An id is empty, or that of another example of this language; a language id
                is none.
        """
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
