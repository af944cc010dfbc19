"""Finding tasks and mixtures by name, and the table behind `maestro tasks`."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Iterable, Mapping

import seqio

from maestro_jax.batches import Mixture
from maestro_jax.data.data_scope import active_data_root, data_scope
from maestro_jax.data.indexed_source import IndexedSource
from maestro_jax.data.registration import add_language_mixture, add_mixture
from maestro_jax.data.task_features import PreparedVocabulary, StreamTask, stream_of
from maestro_jax.errors import UserError, near_misses

# The mixtures that gin files describe, by name.
_described: dict[str, Mixture] = {}


@dataclasses.dataclass(frozen=True)
class TaskRow:
    """One line of the list of tasks.

    Attributes:
        name: Of the task or mixture.
        kind: ``task`` or ``mixture``.
        stream: The stream that it is made for, or an empty string.
        languages: ISO 639-1 codes, in the order of the tasks.
        examples: Examples by split, or None when they are not known before the data are prepared.
        ready: Whether the data and the vocabulary are there.
    """

    name: str
    kind: str
    stream: str
    languages: tuple[str, ...]
    examples: dict[str, int] | None
    ready: bool


def register_shipped_tasks() -> None:
    """Imports the modules that register the tasks and mixtures of `maestro_jax.tasks`."""
    importlib.import_module("maestro_jax.tasks.mixtures")


def get_task_or_mixture(name: str | Mixture) -> seqio.Task | seqio.Mixture:
    """Returns a task or mixture.

    Args:
        name: The name with which it is registered with seqio; or a `Mixture`, which is registered
            if it is not yet.

    Raises:
        UserError: There is none of that name, and the message offers the nearest ones; or a
            `Mixture` has a name that is taken, or tasks that are unknown or do not fit together.
    """
    register_shipped_tasks()
    if isinstance(name, Mixture):
        return _registered_mixture(name)
    if name in seqio.MixtureRegistry.names():
        return seqio.MixtureRegistry.get(name)
    if name in seqio.TaskRegistry.names():
        return seqio.TaskRegistry.get(name)
    known = [*seqio.MixtureRegistry.names(), *seqio.TaskRegistry.names()]
    raise UserError(
        f"unknown task or mixture {name!r}; `maestro tasks` lists them.{near_misses(name, known)}"
    )


def _registered_mixture(mixture: Mixture) -> seqio.Mixture:
    if mixture.name in seqio.TaskRegistry.names():
        raise UserError(f"Mixture.name is {mixture.name!r}, as a task is called; take another.")
    if mixture.name in seqio.MixtureRegistry.names():
        if _described.get(mixture.name) != mixture:
            raise UserError(
                f"Mixture.name is {mixture.name!r}, as another mixture is called; take another."
            )
        return seqio.MixtureRegistry.get(mixture.name)
    if isinstance(mixture.tasks, Mapping):
        rates = {task: float(rate) for task, rate in mixture.tasks.items()}
        for task in rates:
            get_task_or_mixture(task)
        registered = add_mixture(mixture.name, rates)
    else:
        tasks = [
            task.name for name in mixture.tasks for task in tasks_of(get_task_or_mixture(name))
        ]
        registered = add_language_mixture(
            mixture.name, tasks, temperature=mixture.temperature, maximum=mixture.maximum
        )
    _described[mixture.name] = mixture
    return registered


def tasks_of(provider: seqio.Task | seqio.Mixture) -> list[seqio.Task]:
    """The tasks of a mixture, or the task itself."""
    return list(provider.tasks) if isinstance(provider, seqio.Mixture) else [provider]


def task_languages(tasks: Iterable[seqio.Task]) -> list[str]:
    """Returns the codes of the languages that tasks are registered with, each once.

    A plain seqio task does not say its languages before it is read.
    """
    codes = [
        code
        for task in tasks
        if isinstance(task, StreamTask)
        for code in (*task.languages, task.target_language)
        if code
    ]
    return list(dict.fromkeys(codes))


def mixture_languages(names: Iterable[str | Mixture]) -> list[str]:
    """Returns the codes of the languages of tasks and mixtures; see `task_languages`."""
    return task_languages(task for name in names for task in tasks_of(get_task_or_mixture(name)))


def rate_of(provider: seqio.Task | seqio.Mixture, task: seqio.Task) -> float:
    """The weight of a task in a mixture; 1 where the provider is the task itself."""
    return float(provider.get_rate(task)) if isinstance(provider, seqio.Mixture) else 1.0


def registered_tasks() -> list[seqio.Task]:
    """All tasks, sorted by name."""
    register_shipped_tasks()
    return [seqio.TaskRegistry.get(name) for name in sorted(seqio.TaskRegistry.names())]


def is_prepared(task: seqio.Task) -> bool:
    """Whether the data are there; sources of other kinds than ours are taken at their word."""
    return not isinstance(task.source, IndexedSource) or task.source.is_ready()


def check_prepared(provider: seqio.Task | seqio.Mixture) -> None:
    """Refuses a mixture of which some tasks are not prepared, with the names of all of them.

    Raises:
        UserError: Several commands are needed to prepare what is missing, or some of it is there.
            Otherwise whoever opens the first task says how all are prepared.
    """
    tasks = tasks_of(provider)
    missing = [task for task in tasks if not is_prepared(task)]
    remedies = list(dict.fromkeys(getattr(task.source, "remedy", "") for task in missing))
    if missing and (len(missing) < len(tasks) or len(remedies) > 1):
        names = ", ".join(task.name for task in missing)
        commands = f"run `{remedies[0]}`" + (" and so on" if len(remedies) > 1 else "")
        raise UserError(
            f"{len(missing)} of the {len(tasks)} tasks of {provider.name!r} are not prepared below "
            f"{active_data_root()}: {names}; {commands}, or register a mixture without them."
        )


def _is_ready(task: seqio.Task) -> bool:
    """Whether a task can be read."""
    vocabularies = [feature.vocabulary for feature in task.output_features.values()]
    if any(isinstance(v, PreparedVocabulary) and not v.is_ready() for v in vocabularies):
        return False
    return is_prepared(task)


def _examples(tasks: list[seqio.Task]) -> dict[str, int] | None:
    """Examples by split over some tasks; None when any of them cannot tell."""
    totals: dict[str, int] = {}
    for task in tasks:
        for split in task.splits:
            try:
                examples = task.num_input_examples(split)
            except UserError:
                # Prepared, but without this split: whoever reads it is told so.
                examples = 0
            if examples is None:
                return None
            totals[split] = totals.get(split, 0) + examples
    return totals


def _row(name: str, provider: seqio.Task | seqio.Mixture) -> TaskRow:
    tasks = tasks_of(provider)
    languages = [code for task in tasks if isinstance(task, StreamTask) for code in task.languages]
    ready = all(_is_ready(task) for task in tasks)
    return TaskRow(
        name=name,
        kind="mixture" if isinstance(provider, seqio.Mixture) else "task",
        stream=stream_of(provider) or "",
        languages=tuple(dict.fromkeys(languages)),
        examples=_examples(tasks) if ready else None,
        ready=ready,
    )


def list_tasks(data_dir: str | None = None) -> list[TaskRow]:
    """All registered mixtures and tasks, mixtures first, each sorted by name.

    Args:
        data_dir: Where to look for prepared data; None for the user's default.
    """
    register_shipped_tasks()
    with data_scope(data_dir):
        mixtures = [
            _row(name, seqio.MixtureRegistry.get(name))
            for name in sorted(seqio.MixtureRegistry.names())
        ]
        tasks = [
            _row(name, seqio.TaskRegistry.get(name)) for name in sorted(seqio.TaskRegistry.names())
        ]
    return mixtures + tasks
