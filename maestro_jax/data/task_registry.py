"""The tasks and mixtures that runs can name: looking them up, listing them, mixing them."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import seqio

from maestro_jax import provenance
from maestro_jax.batches import Mixture
from maestro_jax.data.data_dir import active_data_root, data_scope
from maestro_jax.data.indexed_source import IndexedSource, IndexedTfdsSource
from maestro_jax.data.stream_tasks import (
    PreparedVocabulary,
    StreamTask,
    add_stream_task,
    stream_of,
)
from maestro_jax.errors import UserError, near_misses

# The mixtures that gin files describe, by name.
_described: dict[str, Mixture] = {}
# A task with the first training examples of another one, or with the rest.
_PART = re.compile(r"(?P<task>.+):(?P<which>first|after)(?P<count>[1-9][0-9]*)")
# The audio of a task of transcribed speech.
_AUDIO = re.compile(r"(?P<task>.+):audio")


@dataclasses.dataclass(frozen=True)
class TaskRow:
    """One line of the list of tasks.

    Attributes:
        name: Name of the task or mixture.
        kind: ``task`` or ``mixture``.
        stream: The stream that it is made for, or an empty string.
        languages: ISO 639-1 codes, in the order of the tasks.
        examples: Examples by split, or None when they are not known before the data are prepared.
        ready: Whether the data and the vocabulary are prepared.
        missing: The commands that prepare what is missing.
    """

    name: str
    kind: str
    stream: str
    languages: tuple[str, ...]
    examples: dict[str, int] | None
    ready: bool
    missing: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class TaskFamily:
    """Tasks of a corpus that exist in any language, registered when they are asked for.

    Attributes:
        corpus: Name of the corpus, the directory of its prepared data.
        streams: Streams of its tasks, `{corpus}_{stream}_{config}`.
        register: Registers the tasks of a config (`ml`, `de_ch`, `ml_en`); raises a `UserError` for
            what is no config.
    """

    corpus: str
    streams: tuple[str, ...]
    register: Callable[[str], object]


_families: dict[str, TaskFamily] = {}


def add_task_family(family: TaskFamily) -> None:
    """Makes the tasks of a corpus known for configs that no module lists."""
    _families[family.corpus] = family


def _register_named(name: str) -> None:
    """Registers the task of a family that a name may mean."""
    for family in _families.values():
        for stream in family.streams:
            prefix = f"{family.corpus}_{stream}_"
            if name.startswith(prefix):
                _register_config(family, name.removeprefix(prefix))


def _register_prepared() -> None:
    """Registers the tasks of all families whose data are prepared below the data directory."""
    for family in _families.values():
        directory = active_data_root() / family.corpus
        for path in sorted(directory.iterdir()) if directory.is_dir() else []:
            known = (f"{family.corpus}_{stream}_{path.name}" for stream in family.streams)
            if path.is_dir() and not any(name in seqio.TaskRegistry.names() for name in known):
                _register_config(family, path.name)


def _register_config(family: TaskFamily, config: str) -> None:
    with contextlib.suppress(UserError):
        family.register(config)


def register_shipped_tasks() -> None:
    """Imports the modules that register the tasks and mixtures of `maestro_jax.tasks`."""
    importlib.import_module("maestro_jax.tasks.mixtures")


def get_task_or_mixture(name: str | Mixture) -> seqio.Task | seqio.Mixture:
    """Returns a task or mixture.

    Args:
        name: The name with which it is registered with seqio; or a `Mixture`, which is registered
            if it is not yet. ``TASK:first100`` is a task with the first 100 training examples of
            another one, and ``TASK:after100`` one with those after them; the other splits are
            whole. ``TASK:audio`` is the audio of transcribed speech as untranscribed speech.

    Raises:
        UserError: There is none of that name, and the message offers the nearest ones; or a
            `Mixture` has a name that is taken, or tasks that are unknown or do not fit together.
    """
    register_shipped_tasks()
    if isinstance(name, Mixture):
        return _registered_mixture(name)
    if (match := _PART.fullmatch(name)) and name not in seqio.TaskRegistry.names():
        return _registered_part(name, match["task"], match["which"], match["count"])
    if (match := _AUDIO.fullmatch(name)) and name not in seqio.TaskRegistry.names():
        return _registered_audio(name, match["task"])
    if name not in seqio.MixtureRegistry.names() and name not in seqio.TaskRegistry.names():
        _register_named(name)
    if name in seqio.MixtureRegistry.names():
        return seqio.MixtureRegistry.get(name)
    if name in seqio.TaskRegistry.names():
        return seqio.TaskRegistry.get(name)
    known = [*seqio.MixtureRegistry.names(), *seqio.TaskRegistry.names()]
    raise UserError(
        f"unknown task or mixture {name!r}; `maestro tasks` lists them.{near_misses(name, known)}"
    )


def _registered_part(name: str, whole: str, which: str, count: str) -> seqio.Task:
    task = get_task_or_mixture(whole)
    if not isinstance(task, StreamTask) or not isinstance(task.source, IndexedTfdsSource):
        raise UserError(
            f"{name!r} is a part of {whole!r}, which is no task of a prepared corpus; name a part "
            "of each of its tasks."
        )
    return add_stream_task(
        name,
        stream=task.stream,
        source=task.source.part("train", f":{count}" if which == "first" else f"{count}:"),
        languages=task.languages,
        target_language=task.target_language,
        vocabulary=next(
            (
                feature.vocabulary
                for key, feature in task.output_features.items()
                if key in ("text", "translation")
            ),
            None,
        ),
        preprocessors=task.preprocessors,
        metric_fns=task.metric_fns,
        postprocess_fn=task.postprocess_fn,
    )


def _registered_audio(name: str, whole: str) -> seqio.Task:
    task = get_task_or_mixture(whole)
    if not isinstance(task, StreamTask) or "audio" not in task.output_features:
        raise UserError(
            f"{name!r} is the audio of {whole!r}, which is no task with audio; name the audio of "
            "each of its tasks."
        )
    return add_stream_task(
        name,
        stream="speech",
        source=task.source,
        languages=task.languages,
        preprocessors=task.preprocessors,
    )


def _registered_mixture(mixture: Mixture) -> seqio.Mixture:
    if mixture.name in seqio.TaskRegistry.names():
        raise UserError(
            f"Mixture.name is {mixture.name!r}, which is the name of a task; choose another."
        )
    if mixture.name in seqio.MixtureRegistry.names():
        if _described.get(mixture.name) != mixture:
            raise UserError(
                f"Mixture.name is {mixture.name!r}, the name of another mixture; choose another."
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
    """Returns the tasks of a mixture, or the task itself."""
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
    """Returns the rate of a task in a mixture; 1 if the provider is the task itself."""
    return float(provider.get_rate(task)) if isinstance(provider, seqio.Mixture) else 1.0


def fingerprint_of(provider: seqio.Task | seqio.Mixture, split: str) -> str:
    """Returns a hash of the tasks, rates and manifests of a mixture; no records are read.

    Args:
        provider: The task or mixture.
        split: Name of the split.
    """
    parts = []
    for task in tasks_of(provider):
        source = task.source
        manifest = (
            source.fingerprint(split)
            if isinstance(source, IndexedSource)
            else source.num_input_examples(split)
        )
        parts.append((task.name, rate_of(provider, task), manifest))
    return provenance.digest(json.dumps(parts))


def registered_tasks() -> list[seqio.Task]:
    """Returns all tasks, sorted by name."""
    register_shipped_tasks()
    _register_prepared()
    return [seqio.TaskRegistry.get(name) for name in sorted(seqio.TaskRegistry.names())]


def is_prepared(task: seqio.Task) -> bool:
    """Returns whether the data are prepared; true of sources other than indexed ones."""
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


def _missing(tasks: Sequence[seqio.Task]) -> tuple[str, ...]:
    """Returns the commands that prepare what tasks lack: data first, then vocabularies."""
    data = [getattr(task.source, "remedy", "") for task in tasks if not is_prepared(task)]
    vocabularies = [
        feature.vocabulary.remedy
        for task in tasks
        for feature in task.output_features.values()
        if isinstance(feature.vocabulary, PreparedVocabulary) and not feature.vocabulary.is_ready()
    ]
    return tuple(dict.fromkeys(data + vocabularies))


def _examples(tasks: list[seqio.Task]) -> dict[str, int] | None:
    """Counts examples by split over some tasks; None if any of them does not know."""
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
    missing = _missing(tasks)
    return TaskRow(
        name=name,
        kind="mixture" if isinstance(provider, seqio.Mixture) else "task",
        stream=stream_of(provider) or "",
        languages=tuple(dict.fromkeys(languages)),
        examples=_examples(tasks) if all(map(is_prepared, tasks)) else None,
        ready=not missing,
        missing=missing,
    )


def list_tasks(data_dir: str | None = None) -> list[TaskRow]:
    """Lists all registered mixtures and tasks, mixtures first, each sorted by name.

    Args:
        data_dir: Directory of prepared data; None for the user's default.
    """
    register_shipped_tasks()
    with data_scope(data_dir):
        _register_prepared()
        mixtures = [
            _row(name, seqio.MixtureRegistry.get(name))
            for name in sorted(seqio.MixtureRegistry.names())
        ]
        tasks = [
            _row(name, seqio.TaskRegistry.get(name)) for name in sorted(seqio.TaskRegistry.names())
        ]
    return mixtures + tasks


def examples_rate(task: seqio.Task, temperature: float = 1.0, maximum: int | None = None) -> float:
    """Computes the mixing rate of a task: ``min(n, maximum) ** (1 / temperature)``.

    With n its number of training examples, this is the formula of
    `seqio.mixing_rate_num_examples`, for tasks that are never cached offline.

    Args:
        task: The task.
        temperature: 1 draws in proportion to the sizes; the higher, the more often small tasks are
            seen; infinite draws all tasks equally often.
        maximum: Sizes above it count as it.

    Raises:
        UserError: The task's source does not know its size.
    """
    examples = task.num_input_examples("train")
    if not examples:
        raise UserError(
            f"the size of task {task.name!r} is unknown; give it a fixed rate in the mixture."
        )
    return float(min(examples, maximum or examples)) ** (1.0 / temperature)


def add_language_mixture(
    name: str, tasks: Sequence[str], *, temperature: float = 1.0, maximum: int | None = None
) -> seqio.Mixture:
    """Registers a mixture of tasks of one stream; a mixture of that name is replaced.

    Args:
        name: Name of the mixture.
        tasks: Names of tasks with the same features, usually one per language.
        temperature: See `examples_rate`; above 1, low-resource languages are up-sampled.
        maximum: See `examples_rate`.

    Returns:
        The mixture; sizes are looked up when it is first read.

    Raises:
        UserError: A task is not registered.
    """
    for task in tasks:
        if task not in seqio.TaskRegistry.names():
            raise UserError(
                f"mixture {name!r} has a task {task!r}, which is not registered; import the module "
                f"that registers it first.{near_misses(task, seqio.TaskRegistry.names())}"
            )
    rate = functools.partial(examples_rate, temperature=temperature, maximum=maximum)
    return add_mixture(name, dict.fromkeys(tasks, rate))


def add_mixture(
    name: str, rates: Mapping[str, float | Callable[[seqio.Task], float]]
) -> seqio.Mixture:
    """Registers a mixture; a mixture of that name is replaced.

    Args:
        name: Name of the mixture.
        rates: Mixing rates, or functions that compute them, by task or mixture.

    Raises:
        UserError: The tasks have different features or vocabularies.
    """
    if name in seqio.MixtureRegistry.names():
        seqio.MixtureRegistry.remove(name)
    try:
        return seqio.MixtureRegistry.add(name, list(rates.items()))
    except ValueError as error:
        raise UserError(
            f"the tasks of mixture {name!r} do not fit together: {' '.join(str(error).split())}"
        ) from error
