"""Registering tasks and mixtures of a stream with seqio: cheap, lazy, and safe to repeat."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import seqio

from maestro_jax.data.preprocessors import Preprocessor, stream_preprocessors
from maestro_jax.data.task_features import StreamTask, stream_output_features
from maestro_jax.errors import UserError, near_misses


def add_stream_task(
    name: str,
    *,
    stream: str,
    source: seqio.DataSource,
    languages: Sequence[str],
    target_language: str = "",
    vocabulary: seqio.Vocabulary | None = None,
    preprocessors: Sequence[Preprocessor] | None = None,
    metric_fns: Sequence[Callable[..., Mapping[str, Any]]] = (),
    postprocess_fn: Callable[..., Any] | None = None,
) -> StreamTask:
    """Registers a task of a stream; a task of that name is replaced, so modules can be reloaded.

    Args:
        name: Of the task.
        stream: One of `maestro_jax.batches.STREAM_FEATURES`.
        source: Gives records with the strings id, text, raw_text, translation, language, speaker
            and int16 16 kHz audio, as far as the preprocessors need them.
        languages: ISO 639-1 codes of what is spoken or written.
        target_language: Of the translations, which the preprocessors set; to find the task's row in
            a table of scores.
        vocabulary: Of texts and translations; not needed for ``speech``.
        preprocessors: One-to-one steps to the stream's features; by default those of
            `stream_preprocessors`.
        metric_fns: Of targets and predictions, called beside our scores; see
            `maestro_jax.data.task_metrics`.
        postprocess_fn: What makes them of references and hypotheses; as they are without it.

    Returns:
        The task.
    """
    if name in seqio.TaskRegistry.names():
        seqio.TaskRegistry.remove(name)
    return seqio.TaskRegistry.add(
        name,
        task_cls=StreamTask,
        stream=stream,
        languages=tuple(languages),
        target_language=target_language,
        source=source,
        preprocessors=stream_preprocessors(stream) if preprocessors is None else preprocessors,
        output_features=stream_output_features(stream, vocabulary),
        metric_fns=list(metric_fns),
        postprocess_fn=postprocess_fn,
        # Sources with random access shuffle all their examples; a buffer of audio adds nothing.
        shuffle_buffer_size=None if source.performs_internal_shuffling else 1000,
    )


def examples_rate(task: seqio.Task, temperature: float = 1.0, maximum: int | None = None) -> float:
    """The mixing rate ``min(n, maximum) ** (1 / temperature)`` of a task with n training examples.

    The formula of `seqio.mixing_rate_num_examples`, for tasks that are never cached offline.

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
            f"task {task.name!r} does not tell its size; give it a fixed rate in the mixture."
        )
    return float(min(examples, maximum or examples)) ** (1.0 / temperature)


def add_language_mixture(
    name: str, tasks: Sequence[str], *, temperature: float = 1.0, maximum: int | None = None
) -> seqio.Mixture:
    """Registers a mixture of tasks of one stream; a mixture of that name is replaced.

    Args:
        name: Of the mixture.
        tasks: Names of tasks with the same features, usually one a language.
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
