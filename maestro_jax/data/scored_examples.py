"""What scoring needs to know of the examples of a task: ids, languages, references.

Tasks of this project name all of it in strings. A task written for T5X names what its author
needed: ids are then numbers, languages those of the language ids, references what the tokens spell.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import seqio

from maestro_jax.data.task_features import StreamTask
from maestro_jax.errors import UserError
from maestro_jax.text.languages import LanguageTable, is_language

_log = logging.getLogger(__name__)

UNDETERMINED = "und"
"""The code of ISO 639-2 for a language that is not known."""


class ScoredExamples:
    """The strings of the examples of some tasks, which are one test set, in the order of reading.

    An instance is for one pass: it refuses an id that it has seen.

    Args:
        languages: What the ids of languages mean; by default those of `LANGUAGES`.
    """

    def __init__(self, languages: LanguageTable | None = None) -> None:
        self._languages = languages or LanguageTable()
        self._task: seqio.Task | None = None
        self._number = 0
        self._told: set[tuple[str, str]] = set()
        self._seen: dict[tuple[str, str, str], tuple[str, int]] = {}

    def strings(self, task: seqio.Task, example: Mapping[str, Any]) -> dict[str, str]:
        """The strings of the next example.

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
        found = {
            "task": task.name,
            "id": self._id(task, example, number),
            "text": self._reference(task, example, "text"),
            "raw_text": _string(example, "raw_text"),
            "translation": self._reference(task, example, "translation"),
            "language": self._language(task, example),
            "target_language": target_language_of(task, example, self._languages),
            "speaker": _string(example, "speaker"),
        }
        key = (found["language"], found["target_language"], found["id"])
        other, before = self._seen.setdefault(key, (task.name, number))
        if (other, before) != (task.name, number):
            if other == task.name:
                raise UserError(
                    f"examples {before} and {number} of task {task.name!r} have the same id "
                    f"{found['id']!r}; give each its own, or leave the feature out: examples are "
                    "numbered then."
                )
            raise UserError(
                f"tasks {other!r} and {task.name!r} both have an example {found['id']!r} in "
                f"{found['language']!r}; score them by themselves: --task {other} --task "
                f"{task.name}."
            )
        return found

    def _id(self, task: seqio.Task, example: Mapping[str, Any], number: int) -> str:
        if "id" not in example:
            return f"{task.name}:{number}"
        value = example["id"]
        try:
            found = value.decode() if isinstance(value, bytes) else str(np.asarray(value).tolist())
        except UnicodeDecodeError:
            found = ""
        if not found.strip() or np.ndim(value):
            raise UserError(
                f"example {number} of task {task.name!r} has the id {found!r}; give each example "
                "its own, or leave the feature out: examples are numbered then."
            )
        return found

    def _reference(self, task: seqio.Task, example: Mapping[str, Any], field: str) -> str:
        """The text before it became tokens; where it was not kept, what the tokens spell."""
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
        found = language_of(task, example, self._languages)
        if not found:
            self._tell_once(
                task,
                "language",
                f"task {task.name!r} does not say its language; it is scored as {UNDETERMINED!r}, "
                "by words (give its examples the language's code as a string feature 'language')",
            )
        return found or UNDETERMINED

    def _tell_once(self, task: seqio.Task, what: str, message: str) -> None:
        if (task.name, what) not in self._told:
            self._told.add((task.name, what))
            _log.warning("warning: %s", message)


def language_of(
    task: seqio.Task, example: Mapping[str, Any], languages: LanguageTable | None = None
) -> str:
    """The language of an example.

    Args:
        task: Its task.
        example: Its features, as NumPy arrays.
        languages: What ids mean; by default those of `LANGUAGES`.

    Returns:
        The string that the example has, else the code of its language id, else what the task was
        registered with, else the end of the task's name, if that is a code; else an empty string.
    """
    found = _code(task, example, "language", languages or LanguageTable())
    if not found and isinstance(task, StreamTask) and len(task.languages) == 1:
        [found] = task.languages
    if not found and is_language(suffix := task.name.rsplit("_", 1)[-1]) and len(suffix) < 4:
        found = suffix
    return found


def target_language_of(
    task: seqio.Task, example: Mapping[str, Any], languages: LanguageTable | None = None
) -> str:
    """The language that an example is translated into; see `language_of`."""
    found = _code(task, example, "target_language", languages or LanguageTable())
    return found or (task.target_language if isinstance(task, StreamTask) else "")


def _code(task: seqio.Task, example: Mapping[str, Any], name: str, languages: LanguageTable) -> str:
    """The code of a language; empty where there is none, or a negative id, which is unknown."""
    identity = example.get(name)
    if identity is None or isinstance(identity, bytes):
        return (identity or b"").decode()
    if np.ndim(identity):
        raise UserError(
            f"{name} is {np.asarray(identity).tolist()} in an example of task {task.name!r}; "
            "it is the code of one language as a string, or its id."
        )
    if int(identity) >= len(languages):
        raise UserError(
            f"{name} is {int(identity)} in an example of task {task.name!r}; ids of languages are "
            f"below {len(languages)}. Give the language's code as a string instead."
        )
    return languages.code(int(identity))


def _string(example: Mapping[str, Any], name: str) -> str:
    value = example.get(name)
    return value.decode() if isinstance(value, bytes) else ""
