"""Scores a trained model on the test sets of its tasks, on any number of processes.

Each process decodes its part of the batches on its own devices and writes what it decoded into the
directory of the results, which all processes share. The first process reads it all, scores it and
writes the tables. See `maestro_jax.evaluation.results` for the files.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import itertools
import json
import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from etils import epath

from maestro_jax import provenance
from maestro_jax.errors import RestartableError, UserError
from maestro_jax.evaluation.decoding import TestSetDecoder
from maestro_jax.evaluation.error_page import write_error_page
from maestro_jax.evaluation.evaluate import DecodingStatistics, Evaluation, score
from maestro_jax.evaluation.predictions import Prediction, merge, read_predictions
from maestro_jax.evaluation.processes import Processes
from maestro_jax.evaluation.results import (
    HypothesisFiles,
    check_writable,
    result_directory,
    search_settings,
)
from maestro_jax.evaluation.score_table import ScoreTable
from maestro_jax.evaluation.suites import Suite, get_suite, suite_of
from maestro_jax.files import as_path, storage_error
from maestro_jax.inference.search_config import SearchConfig
from maestro_jax.inference.transcriber import Transcriber
from maestro_jax.progress import Progress
from maestro_jax.scoring.entity_recall import EntityRecall
from maestro_jax.scoring.glm import Glm, read_glm
from maestro_jax.scoring.metrics import Kind, Metric
from maestro_jax.text.language_tokens import LanguageTokens
from maestro_jax.training import distributed
from maestro_jax.training.checkpoint_files import ARRAYS, FILES
from maestro_jax.training.run import TrainRun
from maestro_jax.training.run_language_tokens import run_language_tokens
from maestro_jax.training.saved_checkpoints import Which, find_checkpoint

if TYPE_CHECKING:
    import seqio

    from maestro_jax.data.evaluation_examples import EvaluationExample
    from maestro_jax.data.test_sets import TaskMetrics

log = logging.getLogger(__name__)

_STREAM_OF_KIND: dict[Kind, str] = {"asr": "paired", "st": "st", "mt": "mt"}


@dataclasses.dataclass(frozen=True)
class Change:
    """A change of every example of a test set before it is decoded.

    Attributes:
        identity: What tells it from other changes.
        apply: From an example to another one of the same task, index and id.
        lengthening: How many times longer the audio becomes, about.
    """

    identity: str
    apply: Callable[[EvaluationExample], EvaluationExample]
    lengthening: float = 1.0


@dataclasses.dataclass(frozen=True)
class RunScores:
    """The scores of a run.

    Attributes:
        tables: One per test set; none on any process but the first.
        directory: Directory of the results.
        failure: Why results could not be written; None if they are.
    """

    tables: tuple[ScoreTable, ...]
    directory: epath.Path | None = None
    failure: UserError | RestartableError | None = None

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class TestSet:
    """Tasks that are scored in one table.

    Attributes:
        name: Name of the test set, without its split.
        kind: `asr`, `st` or `mt`.
        tasks: Names of its tasks, which have the split.
        split: The split.
        change: What is changed before decoding.
        suite: The suite of its rows, if it is one or a part of one.
        glm: Rules for the telephone conversations of the suite; the default ones for None.
    """

    __test__ = False  # Not a class of tests, whatever pytest makes of its name.

    name: str
    kind: Kind
    tasks: tuple[str, ...]
    split: str
    change: Change | None = None
    suite: Suite | None = None
    glm: Glm | None = None

    @property
    def rows(self) -> dict[str, str]:
        """Names of the rows by task, in order; empty where they are languages or directions."""
        return {} if self.suite is None else self.suite.row_names

    @property
    def scorers(self) -> dict[str, tuple[Metric, ...]]:
        """Metrics of the rows that have rules of their own, by row."""
        return {} if self.suite is None else self.suite.scorers(self.glm)

    @property
    def title(self) -> str:
        """The name with its split, which begins the names of its files."""
        return f"{self.name}.{self.split}"

    @property
    def feature(self) -> str:
        """The feature that is decoded: `audio` or `text`."""
        return "text" if self.kind == "mt" else "audio"


def evaluate_run(
    run: TrainRun,
    *,
    model_dir: str | Path,
    data_dir: str | Path | None = None,
    tasks: Sequence[str] = (),
    suite: str | None = None,
    languages: Sequence[str] = (),
    glm: str | Path | None = None,
    split: str = "test",
    step: int | str | None = None,
    weights: Which = "ema",
    low_resource: Collection[str] = (),
    transcriber: Transcriber | None = None,
    search: SearchConfig | None = None,
    output_dir: str | Path | None = None,
    overwrite: bool = False,
) -> RunScores:
    """Decodes and scores test sets, and writes their score tables and hypotheses.

    A mixture in which several corpora have a language is scored corpus by corpus (see
    `maestro_jax.data.test_sets.separate_test_sets`). Every process of several calls this.

    Args:
        run: The run that trained the model.
        model_dir: Model directory of the run.
        data_dir: Root of the prepared data.
        tasks: Tasks or mixtures; by default the paired and ST mixtures that the objective trains.
        suite: Name of a suite (`maestro_jax.evaluation.suites`) in place of `tasks`.
        languages: The part of the suite to score; all of it by default.
        glm: File of the rules for the telephone conversations of a suite.
        split: Split of the tasks.
        step: Step of the checkpoint; the latest by default.
        weights: `ema` for the averaged weights, `params` for the last.
        low_resource: Languages left out of the second average.
        transcriber: A model that is already loaded, of `step` and `weights`; it searches as
            `search` says. Without it, several processes may have parted when this returns.
        search: How the model searches; greedily by default.
        output_dir: Directory of the results; by default that of `result_directory`.
        overwrite: Whether to decode again what an interrupted evaluation, or a complete one of
            the same model, search, data and version, has decoded.

    Returns:
        The scores of all test sets, on the first process.

    Raises:
        UserError: There is nothing to evaluate, or no such checkpoint; or the model does not do
            what a test set asks for.
    """
    test_sets = test_sets_of_run(
        run, tasks, split, suite=suite, languages=languages, glm=glm, data_dir=data_dir
    )
    with loaded_model(
        run,
        model_dir=model_dir,
        data_dir=data_dir,
        step=step,
        weights=weights,
        search=search,
        output_dir=output_dir,
        transcriber=transcriber,
    ) as model:
        return evaluate_test_sets(
            test_sets,
            model.transcriber,
            directory=model.directory,
            data_dir=data_dir,
            low_resource=low_resource,
            origin=model.origin,
            extra_metrics=model.extra_metrics,
            overwrite=overwrite,
            processes=model.processes,
        )


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model, ready to be evaluated.

    Attributes:
        transcriber: The model with its search.
        directory: Directory of the results.
        origin: How hypotheses of it come about, for the files of the results.
        processes: The processes that evaluate it.
        extra_metrics: Metrics besides the registered ones.
    """

    transcriber: Transcriber
    directory: epath.Path
    origin: Mapping[str, Any]
    processes: Processes
    extra_metrics: Sequence[Metric] = ()


@contextlib.contextmanager
def loaded_model(
    run: TrainRun,
    *,
    model_dir: str | Path,
    data_dir: str | Path | None = None,
    step: int | str | None = None,
    weights: Which = "ema",
    search: SearchConfig | None = None,
    output_dir: str | Path | None = None,
    transcriber: Transcriber | None = None,
) -> Iterator[LoadedModel]:
    """Loads a model for `evaluate_test_sets` in the block; see `evaluate_run` for the arguments.

    Unless it is given a model, several processes part (`distributed.part`) once theirs is loaded.
    """
    search = search or SearchConfig()
    checkpoint = find_step(model_dir, step)
    if run.ema_decay is None:
        weights = "params"
    directory = (
        as_path(output_dir)
        if output_dir
        else result_directory(model_dir, checkpoint.name, weights, search)
    )
    check_writable(directory)
    session = distributed.first_process_decides(int(time.time()))
    with Processes(
        directory, index=jax.process_index(), count=jax.process_count(), session=session
    ) as processes:
        if transcriber is None:
            transcriber = Transcriber.from_checkpoint(
                str(checkpoint), run, which=weights, search=search
            )
            # From here on, they meet in files.
            distributed.part()
            _add_language_tokens(transcriber, run, search, model_dir, data_dir, processes)
        phrases = search.phrase_list()
        yield LoadedModel(
            transcriber,
            directory,
            _origin(checkpoint, weights, search),
            processes,
            (EntityRecall(phrases),) if phrases else (),
        )


def _add_language_tokens(
    transcriber: Transcriber,
    run: TrainRun,
    search: SearchConfig,
    model_dir: str | Path,
    data_dir: str | Path | None,
    processes: Processes,
) -> None:
    """Tells a transcriber what each language writes; the first process counts it if need be."""
    known = transcriber.language_tokens is not None
    if not known and processes.index == 0:
        transcriber.language_tokens = run_language_tokens(
            run, transcriber.vocabulary, as_path(model_dir), data_dir
        )
    known = processes.meet("language tokens", transcriber.language_tokens is not None)
    if known and transcriber.language_tokens is None:
        transcriber.language_tokens = LanguageTokens.load(
            as_path(model_dir), transcriber.vocabulary
        )
    if search.language_mask and transcriber.language_tokens is None:
        raise UserError(
            "--language_mask needs to know what each language writes: prepare the training data "
            "of the run on this machine, or leave it out."
        )


def evaluate_test_sets(
    test_sets: Sequence[TestSet],
    transcriber: Transcriber,
    *,
    directory: epath.PathLike,
    data_dir: str | Path | None = None,
    low_resource: Collection[str] = (),
    origin: Mapping[str, Any] | None = None,
    extra_metrics: Sequence[Metric] = (),
    overwrite: bool = False,
    processes: Processes | None = None,
) -> RunScores:
    """Decodes and scores test sets with a model that is loaded; see `evaluate_run`.

    Args:
        test_sets: Test sets, as of `select_test_sets`.
        transcriber: The model.
        directory: Directory of the results.
        data_dir: Root of the prepared data.
        low_resource: Languages left out of the second average.
        origin: How the hypotheses come about, for the files of the results.
        extra_metrics: Metrics besides the registered ones.
        overwrite: As of `evaluate_run`.
        processes: The processes of the evaluation; None for this one alone.
    """
    directory = as_path(directory)
    # All are checked before anything is decoded: some ask for what cannot be given.
    metrics = [_task_metrics(test_set) for test_set in test_sets]
    lengths = [_lengths(test_set, transcriber, data_dir) for test_set in test_sets]
    failures: list[UserError | RestartableError] = []
    tables = [
        _evaluate_test_set(
            test_set,
            own,
            transcriber,
            lengths=known,
            directory=directory,
            data_dir=data_dir,
            low_resource=low_resource,
            origin=origin or {},
            extra_metrics=extra_metrics,
            overwrite=overwrite,
            processes=processes or Processes(directory),
            failures=failures,
        )
        for test_set, own, known in zip(test_sets, metrics, lengths, strict=True)
    ]
    written = tuple(table for table in tables if table is not None)
    return RunScores(written, directory, failures[0] if failures else None)


def test_sets_of_run(
    run: TrainRun,
    tasks: Sequence[str],
    split: str,
    *,
    suite: str | None = None,
    languages: Sequence[str] = (),
    glm: str | Path | None = None,
    data_dir: str | Path | None = None,
) -> list[TestSet]:
    """Returns a suite, or the test sets of tasks and mixtures: by default those of a run.

    Args:
        run: The run that trained the model.
        tasks: Tasks and mixtures.
        split: Their split.
        suite: Name of a suite in place of `tasks`.
        languages: See `select_suite`.
        glm: See `select_suite`.
        data_dir: See `select_suite`.

    Raises:
        UserError: There is nothing to evaluate, or the model does not do what a test set asks for.
    """
    if suite is not None:
        test_sets = [select_suite(suite, split, languages=languages, glm=glm, data_dir=data_dir)]
    else:
        test_sets = select_test_sets(tasks or _tasks_of_run(run), split)
    for test_set in test_sets:
        _check_trained(run, test_set)
    return test_sets


def select_test_sets(names: Sequence[str], split: str) -> list[TestSet]:
    """Divides tasks and mixtures into test sets.

    Args:
        names: Tasks and mixtures.
        split: Their split.

    Raises:
        UserError: One is unknown or cannot be scored, or lacks the split.
    """
    from maestro_jax.data.evaluation_examples import evaluation_tasks
    from maestro_jax.data.stream_tasks import stream_of
    from maestro_jax.data.task_registry import get_task_or_mixture
    from maestro_jax.data.test_sets import separate_test_sets

    test_sets = []
    for mixture in names:
        stream = stream_of(get_task_or_mixture(mixture))
        kinds: list[Kind] = [k for k, s in _STREAM_OF_KIND.items() if s == stream]
        if not kinds:
            of = f"of the stream {stream!r}" if stream else "of no stream, by its features"
            raise UserError(
                f"{mixture!r} is {of}; only 'paired' (audio, text, language), 'st' (audio, "
                "translation, language, target_language) and 'mt' (text, translation, "
                "language, target_language) can be scored."
            )
        members = separate_test_sets(mixture, evaluation_tasks(mixture, split))
        test_sets += [
            TestSet(
                name=name,
                kind=kinds[0],
                tasks=tuple(task.name for task in tasks),
                split=split,
                suite=suite_of([task.name for task in tasks]),
            )
            for name, tasks in members.items()
        ]
    return test_sets


def select_suite(
    name: str,
    split: str,
    *,
    languages: Sequence[str] = (),
    glm: str | Path | None = None,
    data_dir: str | Path | None = None,
) -> TestSet:
    """Returns a suite, or a part of it, as one test set.

    Args:
        name: Name of the suite.
        split: Split of its tasks.
        languages: The part to score; all that papers average over, and what else is prepared, by
            default.
        glm: File of rules for telephone conversations.
        data_dir: Root of the prepared data.

    Raises:
        UserError: There is no such suite, it lacks a language, or one is not prepared; or rules are
            given to a suite without telephone conversations.
    """
    from maestro_jax.data.data_dir import data_scope

    suite = get_suite(name).select(languages)
    with data_scope(data_dir):
        suite = suite.prepared(split, chosen=bool(languages))
    if glm is not None and not suite.scorers():
        raise UserError(
            f"--glm has rules for telephone conversations, and {name} has none: leave it out, or "
            "evaluate --suite speechstew."
        )
    part = [] if not languages else ["-".join(row.key for row in suite.rows)]
    return TestSet(
        name=".".join([name, *part]),
        kind=suite.kind,
        tasks=suite.task_names,
        split=split,
        suite=suite,
        glm=None if glm is None else read_glm(glm),
    )


def _tasks_of_run(run: TrainRun) -> list[str]:
    """Returns the mixtures of speech with texts that a run trains on."""
    from maestro_jax.data.task_registry import get_task_or_mixture

    names = [
        get_task_or_mixture(run.streams[stream].mixture).name
        for stream in ("paired", "st")
        if stream in run.used_streams
    ]
    if not names:
        raise UserError("the run has no stream paired or st; name a task with --task.")
    return names


def _check_trained(run: TrainRun, test_set: TestSet) -> None:
    """Refuses a test set of what the model was never trained to write."""
    trained = set(run.objective.streams)
    if test_set.kind == "asr" and "paired" not in trained and "st" in trained:
        raise UserError(
            f"the model was trained to translate, and {test_set.name!r} asks for transcripts; "
            "evaluate it on a task of translation, such as covost2_st_de_en."
        )
    if test_set.kind != "asr" and not trained & {"st", "mt"}:
        raise UserError(
            f"the model was trained to transcribe, and {test_set.name!r} asks for translations; "
            "fine-tune it for translation (runs/paper_covost2_finetune.gin), or evaluate it on a "
            "task of recognition."
        )


def _task_metrics(test_set: TestSet) -> TaskMetrics:
    from maestro_jax.data.task_registry import get_task_or_mixture
    from maestro_jax.data.test_sets import TaskMetrics

    members: list[seqio.Task] = [get_task_or_mixture(name) for name in test_set.tasks]
    return TaskMetrics(members, "text" if test_set.kind == "asr" else "translation")


def find_step(model_dir: str | Path, step: int | str | None) -> epath.Path:
    """Returns the checkpoint to evaluate, the same on every process while training writes more."""
    directory = as_path(model_dir)
    checkpoint = find_checkpoint(
        directory if step is None else directory / "checkpoints" / str(step)
    )
    if not checkpoint.name.isdecimal():
        return checkpoint
    newest = distributed.first_process_decides(int(checkpoint.name))
    return checkpoint.parent / str(newest)


def _origin(checkpoint: epath.Path, weights: str, search: SearchConfig) -> dict[str, Any]:
    """Describes how hypotheses come about, for the files of the results."""
    devices = jax.devices()
    # Digests are added to the list of files later; that of the arrays does not change.
    files = checkpoint / (ARRAYS if (checkpoint / ARRAYS).exists() else FILES)
    return {
        "checkpoint": str(checkpoint),
        "checkpoint_files": provenance.digest(files.read_text() if files.exists() else ""),
        "step": int(checkpoint.name) if checkpoint.name.isdecimal() else checkpoint.name,
        "weights": weights,
        "search": search_settings(search),
        "normalizer": "voxpopuli",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "devices": {
            "kind": devices[0].device_kind,
            "count": len(devices),
            "processes": jax.process_count(),
        },
        **provenance.versions(provenance.command_line()),
    }


def _identity(
    origin: Mapping[str, Any], test_set: TestSet, lengths: np.ndarray | None
) -> dict[str, Any]:
    """Returns what the hypotheses of a test set depend on."""
    named = ("step", "weights", "search", "checkpoint_files", "git")
    return {
        **{name: origin.get(name) for name in named},
        "tasks": list(test_set.tasks),
        "change": None if test_set.change is None else test_set.change.identity,
        "data": None if lengths is None else provenance.digest(lengths.tobytes()),
    }


def _evaluate_test_set(
    test_set: TestSet,
    own: TaskMetrics,
    transcriber: Transcriber,
    *,
    lengths: np.ndarray | None,
    directory: epath.Path,
    data_dir: str | Path | None,
    low_resource: Collection[str],
    origin: Mapping[str, Any],
    extra_metrics: Sequence[Metric],
    overwrite: bool,
    processes: Processes,
    failures: list[UserError | RestartableError],
) -> ScoreTable | None:
    """Decodes a test set and, on the first process, scores it and writes its files.

    Scores that took hours to compute are returned also where their files cannot be written, which
    is added to `failures`.
    """
    identity = _identity(origin, test_set, lengths)
    files = HypothesisFiles(directory, test_set.title, identity, processes)
    predictions, statistics = None, None
    # Hypotheses that postprocess_fn has changed cannot be given to it again.
    if not overwrite and not own.asked and processes.index == 0:
        predictions = _complete(files, directory, test_set, identity)
    complete = processes.meet(f"{test_set.title} is complete", predictions is not None)
    if not complete:
        collected = _decode(test_set, transcriber, files, lengths, data_dir, overwrite, processes)
        if collected is not None:
            predictions, statistics = collected
    if predictions is None:
        return None
    table, predictions = _score(
        test_set,
        own,
        transcriber,
        predictions,
        lengths,
        data_dir=data_dir,
        low_resource=low_resource,
        extra_metrics=extra_metrics,
    )
    table = dataclasses.replace(
        table,
        evaluation=dataclasses.replace(table.evaluation, decoding=statistics),
        provenance={**origin, "identity": identity} if origin else {},
    )
    details = {name: str(origin[name]) for name in ("step", "weights") if name in origin}
    try:
        markdown, _ = table.write(directory)
        write_error_page(
            directory / f"{test_set.title}.html",
            predictions,
            name=test_set.title,
            details=details | {"result": directory.name},
            rows=test_set.rows,
            scorers=test_set.scorers,
        )
        if not complete:
            # Last: until the tables are written, a restart needs the parts.
            files.finish(predictions)
    except Exception as error:
        trouble = storage_error(error)
        if trouble is None:
            raise
        log.warning("cannot write the results into %s: %s", directory, trouble)
        failures.append(
            type(trouble)(
                f"cannot write the results into {directory} ({trouble}), so the scores are in no "
                "file; give --output_dir DIR, or free some space, and start the command again"
            )
        )
    else:
        log.info("wrote %s", markdown)
    return table


def _lengths(
    test_set: TestSet, transcriber: Transcriber, data_dir: str | Path | None
) -> np.ndarray | None:
    """Returns samples or tokens of all utterances, `[utterances]`; None if they are not known."""
    from maestro_jax.data.evaluation_examples import evaluation_examples, evaluation_lengths

    if test_set.feature == "audio":
        lengths = evaluation_lengths(test_set.tasks, test_set.split, data_dir)
        return None if lengths is None else lengths[:, 0]
    texts = evaluation_examples(
        test_set.tasks,
        test_set.split,
        data_dir,
        features=("text",),
        languages=transcriber.languages,
        vocabulary=transcriber.vocabulary,
    )
    return np.fromiter((len(text.features["text"]) for text in texts), np.int64)


def _complete(
    files: HypothesisFiles,
    directory: epath.Path,
    test_set: TestSet,
    identity: Mapping[str, Any],
) -> list[Prediction] | None:
    """Returns the hypotheses of a complete evaluation that would come out the same again."""
    path = directory / f"{test_set.title}.json"
    if not path.exists() or not files.final.exists():
        return None
    try:
        before = json.loads(path.read_text())["provenance"]["identity"]
    except (ValueError, KeyError, TypeError):
        return None
    # Files that differ from the commit may differ in any way.
    changed = (identity["git"] or {}).get("changed", identity["step"] is None)
    if changed or before != json.loads(json.dumps(identity)):
        return None
    log.info("%s is complete: it is scored again; --overwrite decodes it again", files.final)
    return read_predictions(files.final)


def _decode(
    test_set: TestSet,
    transcriber: Transcriber,
    files: HypothesisFiles,
    lengths: np.ndarray | None,
    data_dir: str | Path | None,
    overwrite: bool,
    processes: Processes,
) -> tuple[list[Prediction], DecodingStatistics] | None:
    """Decodes this process's part of a test set; returns all parts on the first process."""
    from maestro_jax.data.evaluation_examples import evaluation_examples

    recovered = files.recover(overwrite=overwrite)
    done = {(prediction.task, prediction.index) for prediction in recovered}
    if done and processes.index == 0:
        log.info("%s: %d utterances were decoded before", test_set.title, len(done))
    change = test_set.change
    changed = lengths if change is None or lengths is None else lengths * change.lengthening
    decoder = TestSetDecoder(transcriber, test_set.kind, changed)
    # Texts may be read one after the other alone, which costs little.
    chosen = None
    if processes.count > 1 and test_set.feature == "audio":
        shards = processes.meet(f"{test_set.title} is shared", transcriber.data_shards)
        chosen = decoder.share(processes.index, processes.count, shards=shards)
    decoder.fit_memory()
    if processes.index == 0:
        log.info("%s: %s", test_set.title, decoder.describe())
    examples = evaluation_examples(
        test_set.tasks,
        test_set.split,
        data_dir,
        features=(test_set.feature,),
        languages=transcriber.languages,
        vocabulary=transcriber.vocabulary,
        shard=(processes.index, processes.count),
        chosen=chosen,
    )
    examples = itertools.filterfalse(
        lambda example: (example.strings["task"], example.index) in done, examples
    )
    if change is not None:
        examples = map(change.apply, examples)
    total = 0 if lengths is None else -(-(len(lengths) - len(done)) // processes.count)
    label = test_set.title if processes.count == 1 else f"{test_set.title}, part of one host"
    with Progress(total, label, unit="utterance") as progress:
        for prediction in decoder.decode(examples):
            files.add(prediction)
            progress.update(1)
    return files.collect(decoder.statistics)


def _score(
    test_set: TestSet,
    own: TaskMetrics,
    transcriber: Transcriber,
    predictions: Sequence[Prediction],
    lengths: np.ndarray | None,
    *,
    data_dir: str | Path | None,
    low_resource: Collection[str],
    extra_metrics: Sequence[Metric],
) -> tuple[ScoreTable, list[Prediction]]:
    """Scores the hypotheses of a whole test set; returns what was scored as well, in order."""
    from maestro_jax.data.data_dir import data_scope
    from maestro_jax.data.evaluation_examples import evaluation_tasks
    from maestro_jax.data.test_sets import test_set_sizes

    if not predictions:
        raise UserError(
            f"the test set {test_set.title!r} has no utterances; check --split and --data_dir"
        )
    merged, repeats = merge(predictions, test_set.rows)
    if lengths is not None and len(merged) != len(lengths):
        log.warning(
            "%s: %d utterances were scored, and the data have %d records",
            test_set.title,
            len(merged),
            len(lengths),
        )
    if own.asked:
        merged = _postprocessed(test_set, own, merged, transcriber, data_dir)
    with data_scope(data_dir):
        expected = test_set_sizes(
            evaluation_tasks(test_set.tasks, test_set.split), test_set.split, test_set.rows
        )
    evaluation = score(
        merged,
        kind=test_set.kind,
        name=test_set.title,
        expected=expected,
        rows=test_set.rows,
        scorers=test_set.scorers,
        # What postprocess_fn makes of a reference is not for the vocabulary to write.
        round_trip=None if own.postprocessed else transcriber.vocabulary.round_trip,
        extra_metrics=extra_metrics,
    )
    evaluation = dataclasses.replace(
        evaluation,
        repeats=repeats,
        task_metrics=own.compute(),
        postprocessed=own.postprocessed,
    )
    beside = {} if test_set.suite is None else test_set.suite.beside(test_set.split)
    return ScoreTable(evaluation, low_resource, **beside), merged


def _postprocessed(
    test_set: TestSet,
    own: TaskMetrics,
    predictions: Sequence[Prediction],
    transcriber: Transcriber,
    data_dir: str | Path | None,
) -> list[Prediction]:
    """Gives all utterances to the functions of their tasks, which need the examples again."""
    from maestro_jax.data.evaluation_examples import evaluation_examples

    by_place = {(one.task, one.index): one for one in predictions}
    processed = []
    for example in evaluation_examples(
        test_set.tasks,
        test_set.split,
        data_dir,
        features=(test_set.feature,),
        languages=transcriber.languages,
    ):
        one = by_place[(example.strings["task"], example.index)]
        metadata = {**example.strings, "example": example.features}
        reference, hypothesis = own.postprocess(metadata, one.hypothesis)
        processed.append(dataclasses.replace(one, reference=reference, hypothesis=hypothesis))
    return sorted(processed, key=lambda one: (one.direction, one.id))
