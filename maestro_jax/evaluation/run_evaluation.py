"""Scores a trained model on the test sets of its tasks."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from maestro_jax.errors import UserError
from maestro_jax.evaluation.evaluate import Evaluation, evaluate
from maestro_jax.evaluation.score_table import ScoreTable
from maestro_jax.files import as_path
from maestro_jax.inference.search_config import SearchConfig
from maestro_jax.inference.transcriber import Transcriber
from maestro_jax.progress import Progress
from maestro_jax.scoring.metrics import Kind
from maestro_jax.scoring.published import published_scores
from maestro_jax.text.vocabularies import Vocabulary
from maestro_jax.training.run import TrainRun

log = logging.getLogger(__name__)

_STREAM_OF_KIND: dict[Kind, str] = {"asr": "paired", "st": "st", "mt": "mt"}


@dataclasses.dataclass(frozen=True)
class RunScores:
    """The scores of a run.

    Attributes:
        tables: One per test set.
    """

    tables: tuple[ScoreTable, ...]

    @property
    def evaluations(self) -> tuple[Evaluation, ...]:
        """One evaluation per test set."""
        return tuple(table.evaluation for table in self.tables)

    def as_dict(self) -> list[dict]:
        """Returns plain JSON values."""
        return [table.as_dict() for table in self.tables]

    def text(self) -> str:
        """Returns one table per test set for a terminal."""
        return "\n".join(table.text() for table in self.tables)


def evaluate_run(
    run: TrainRun,
    *,
    model_dir: str | Path,
    data_dir: str | Path | None = None,
    tasks: Sequence[str] = (),
    split: str = "test",
    step: int | str | None = None,
    batch_size: int = 32,
    low_resource: Collection[str] = (),
    transcriber: Transcriber | None = None,
    search: SearchConfig | None = None,
    output_dir: str | Path | None = None,
) -> RunScores:
    """Decodes and scores test sets, and writes their score tables and predictions.

    A mixture in which several corpora have a language is scored corpus by corpus (see
    `maestro_jax.data.test_sets.separate_test_sets`).

    Args:
        run: The run that trained the model.
        model_dir: Model directory of the run.
        data_dir: Root of the prepared data.
        tasks: Tasks or mixtures; by default the paired and ST mixtures that the objective trains.
        split: Split of the tasks.
        step: Step of the checkpoint; the latest by default.
        batch_size: Utterances decoded at once, rounded up to a multiple of the data devices.
        low_resource: Languages left out of the second average.
        transcriber: A model that is already loaded; it knows how to search.
        search: How a model that is loaded here searches; greedily by default.
        output_dir: Directory of tables and predictions; by default `evaluation` in `model_dir`.

    Returns:
        The scores of all test sets.

    Raises:
        UserError: There is nothing to evaluate, or no such checkpoint.
    """
    from maestro_jax.data.data_dir import data_scope
    from maestro_jax.data.evaluation_batches import evaluation_batches
    from maestro_jax.data.stream_tasks import stream_of
    from maestro_jax.data.task_registry import get_task_or_mixture, tasks_of
    from maestro_jax.data.test_sets import TaskMetrics, published_test_sizes, separate_test_sets

    if transcriber is None:
        directory = as_path(model_dir)
        if step is not None:
            directory = directory / "checkpoints" / str(step)
        transcriber = Transcriber.from_checkpoint(directory, run, search=search)
    selected: list[tuple[Kind, str]] = []
    if tasks:
        for name in tasks:
            stream = stream_of(get_task_or_mixture(name))
            kinds: list[Kind] = [k for k, s in _STREAM_OF_KIND.items() if s == stream]
            if not kinds:
                of = f"of the stream {stream!r}" if stream else "of no stream, by its features"
                raise UserError(
                    f"{name!r} is {of}; only 'paired' (audio, text, language), 'st' (audio, "
                    "translation, language, target_language) and 'mt' (text, translation, "
                    "language, target_language) can be scored."
                )
            selected.append((kinds[0], name))
    else:
        for kind, stream in _STREAM_OF_KIND.items():
            if stream in run.used_streams and kind != "mt":
                selected.append((kind, get_task_or_mixture(run.streams[stream].mixture).name))
    if not selected:
        raise UserError("the run has no stream paired or st; name a task with --task.")

    output_dir = as_path(output_dir or as_path(model_dir) / "evaluation")
    shards = transcriber.data_shards
    vocabulary: Vocabulary | None = getattr(transcriber, "vocabulary", None)
    batch_size = -(-batch_size // shards) * shards
    sets = [
        (kind, name, test_set, members)
        for kind, name in selected
        for test_set, members in separate_test_sets(
            name, [task for task in tasks_of(get_task_or_mixture(name)) if split in task.splits]
        ).items()
    ]
    # All are checked before anything is decoded: some ask for what cannot be given.
    own_metrics = [
        TaskMetrics(members, "text" if kind == "asr" else "translation")
        for kind, _, _, members in sets
    ]
    tables = []
    for (kind, mixture, name, members), own in zip(sets, own_metrics, strict=True):
        names = [task.name for task in members]
        with data_scope(data_dir):
            examples = sum(task.source.num_input_examples(split) or 0 for task in members)
            expected = published_test_sizes(members, split)
        progress = Progress(examples, f"{name} {split}")
        evaluation = evaluate(
            evaluation_batches(
                names or mixture,
                split,
                batch_size,
                transcriber.samples,
                data_dir,
                text_tokens=transcriber.tokens if kind == "mt" else 0,
                languages=getattr(transcriber, "languages", None),
                keep_examples=own.asked,
            ),
            functools.partial(
                _texts, transcriber.translate if kind == "mt" else transcriber.decode
            ),
            kind=kind,
            name=f"{name}.{split}",
            output_dir=output_dir,
            expected=expected,
            progress=progress.update_to,
            # What postprocess_fn makes of a reference is not for the vocabulary to write.
            round_trip=None if vocabulary is None or own.postprocessed else vocabulary.round_trip,
            postprocess=own.postprocess if own.asked else None,
        )
        evaluation = dataclasses.replace(
            evaluation, task_metrics=own.compute(), postprocessed=own.postprocessed
        )
        progress.close()
        known = published_scores(names, split)
        tables.append(ScoreTable(evaluation, low_resource, known.groups, known.published))
        if jax.process_index() == 0:
            markdown, _ = tables[-1].write(output_dir)
            log.info("wrote %s", markdown)
    return RunScores(tuple(tables))


def _texts(decode: Callable[..., Any], features: Mapping[str, Any]) -> Any:
    """Decodes a batch, each row into the language that its task translates into."""
    return decode(features, features.get("target_language"))[0]
