"""Checkpoints: everything that this project asks of Orbax, in one place.

A model directory holds ``checkpoints/<step>/state`` (the training state) and
``checkpoints/<step>/data`` (a small JSON record, `records.TrainingRecord`). The files and arrays of
a checkpoint are verified when it is restored (`checkpoint_files`).

The newest checkpoints are kept, and the best one of a run with validation; the file
``best_checkpoint.json`` names it. Where a checkpoint is asked for, ``MODEL_DIR`` means the newest
one that is whole, ``MODEL_DIR/best`` the best one, and ``MODEL_DIR/checkpoints/<step>`` that of one
step. The latter two are refused if they are damaged.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import json
import logging
import re
import shutil
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers

from maestro_jax.errors import RestartableError, UserError
from maestro_jax.files import (
    absolute_path,
    is_remote,
    models_below,
    move_tree,
    write_atomically,
)
from maestro_jax.modules.duration import FROZEN_DURATIONS, freeze_durations, names_to_freeze
from maestro_jax.training import (
    array_checksums,
    checkpoint_files,
    distributed,
    parameter_groups,
    parameter_trees,
)
from maestro_jax.training.checkpoint_files import FILES, RECORD, STATE, check_whole
from maestro_jax.training.commit_barrier import CommitBarrier
from maestro_jax.training.state import TrainState

if TYPE_CHECKING:
    from maestro_jax.training.run import TrainRun

log = logging.getLogger(__name__)


def _is_not_of_orbax(record: logging.LogRecord) -> bool:
    raised = record.exc_info[2] if record.exc_info else None
    files = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(raised)]
    return not any("orbax" in text for text in (record.pathname, record.getMessage(), *files))


# Orbax logs many lines of each save, and failures with tracebacks; what matters is said here.
for _name in ("absl", "asyncio"):
    logging.getLogger(_name).addFilter(_is_not_of_orbax)

SUBDIRECTORY = "checkpoints"
BEST_FILE = "best_checkpoint.json"
REPORT_FILE = "init_report.txt"
SET_ASIDE = "damaged_checkpoints"
"""Directory beside ``checkpoints`` for those that were damaged when training was resumed."""
Which = Literal["ema", "params"]
_STATE_FIELDS = {"ema": "ema_params", "params": "params"}
# The layers of a stack in one scanned array, or in an array per layer.
_SCANNED = re.compile(r"(.*/)?layers(/.*)")
_UNROLLED = re.compile(r"(.*/)?layer_\d+(/.*)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BestCheckpoint:
    """Names the checkpoint with the best value of a metric so far.

    Attributes:
        step: Step of the checkpoint.
        metric: Name of the metric, such as ``validation/wer``.
        mode: Whether the smallest (``min``) or the largest (``max``) value is the best.
        value: Value of the metric.
    """

    step: int
    metric: str
    mode: Literal["min", "max"]
    value: float

    def is_beaten_by(self, value: float) -> bool:
        """Returns whether another value of the metric is better; equal values are not."""
        return value < self.value if self.mode == "min" else value > self.value


class _KeepBest(checkpoint_managers.PreservationPolicy):
    """Preserves the best checkpoint of a directory, whatever its age."""

    def __init__(self, checkpoints: Checkpoints) -> None:
        self._checkpoints = checkpoints

    def should_preserve(
        self,
        checkpoints: Sequence[checkpoint_managers.PolicyCheckpointInfo],
        *,
        context: checkpoint_managers.PreservationContext,
    ) -> Sequence[bool]:
        best = self._checkpoints.best
        return [best is not None and info.step == best.step for info in checkpoints]


class Checkpoints:
    """Manages the checkpoints of one model directory.

    Saving is asynchronous: the arrays are copied to the host before ``save`` returns and written
    in the background. A failure of the storage raises nothing: it is counted and logged, what was
    written of the checkpoint is removed, and the caller decides when to try again.

    Args:
        model_dir: The model directory; checkpoints lie in ``checkpoints/`` within.
        keep: Number of newest checkpoints to keep.
        keep_every: Keep also those whose step is a multiple of it; None for no more.

    Attributes:
        directory: The directory of the checkpoints.
        best: The best checkpoint, which is kept besides the newest ones; None for none.
        failures: Number of attempts to save in a row that failed, the same on every process.
        failure: Why the last of them failed.
        last_saved: The last step that was saved, or restored, by this process; None if none was.
    """

    def __init__(
        self, model_dir: epath.PathLike, *, keep: int = 2, keep_every: int | None = None
    ) -> None:
        self.directory = absolute_path(model_dir) / SUBDIRECTORY
        self.best: BestCheckpoint | None = None
        self.failures = 0
        self.failure = ""
        self.last_saved: int | None = None
        self._keep = keep
        self._keep_every = keep_every
        self._manager: ocp.CheckpointManager | None = None
        # The step that is being written, the sums of its arrays, and, when known, why it failed.
        self._saving = -1
        self._arrays: dict[str, tuple[str, Any]] = {}
        self._outcome: concurrent.futures.Future[str | None] | None = None
        self._barrier = CommitBarrier()
        self._background = concurrent.futures.ThreadPoolExecutor(2, "checkpoints")

    def latest_step(self) -> int | None:
        """Returns the step of the newest checkpoint, or None."""
        return max(self.all_steps(), default=None)

    def all_steps(self) -> list[int]:
        """Returns the steps of all checkpoints, one that is being written included, ascending."""
        if self._manager is not None:
            return sorted(self._manager.all_steps())
        return sorted(ocp.utils.checkpoint_steps(self.directory)) if self.directory.is_dir() else []

    # ------------------------------------------------------------------------------- saving

    def save(self, state: TrainState | Mapping[str, Any], data: Mapping[str, Any]) -> None:
        """Begins to save a state; does nothing if its step has been saved already.

        Waits for the checkpoint before it. If the storage fails, `failures` counts it.

        Args:
            state: The state, or some of its fields by name, whose arrays may be donated as soon as
                this returns.
            data: JSON values, with the key ``step``.
        """
        step = int(data["step"])
        self.settle()
        if step in self.all_steps():
            return
        failure = self._agreed(self._obstacle() if jax.process_index() == 0 else None)
        if failure is None:
            failure = self._begin(step, state, data)
        if failure is not None:
            self._count(step, failure)

    def check_writable(self) -> None:
        """Checks before the first step that checkpoints can be saved.

        Raises:
            RestartableError: They cannot, for lack of rights or room, or of a bucket that answers.
        """
        failure = self._agreed(self._obstacle() if jax.process_index() == 0 else None)
        if failure is not None:
            raise RestartableError(
                f"checkpoints cannot be saved in {self.directory} ({failure}): see to its rights "
                "and its room, or choose another model directory."
            )

    def _begin(
        self, step: int, state: TrainState | Mapping[str, Any], data: Mapping[str, Any]
    ) -> str | None:
        """Starts Orbax's threads, and one that waits for them; returns why that failed."""
        sums = array_checksums.checksums(state)
        kinds = {name: str(array.dtype) for name, array in array_checksums.named_arrays(state)}
        self._arrays = {name: (kinds[name], value) for name, value in sums.items()}
        self._saving = step
        self._barrier.begin()
        failure: str | None = None
        try:
            self._open().save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state), data=ocp.args.JsonSave(dict(data))
                ),
                force=True,
            )
        except Exception as error:
            self._barrier.fail()
            failure = checkpoint_files.describe_failure(error)
            if failure is None:
                raise
        else:
            self._outcome = self._background.submit(self._finish, step)
        failure = self._agreed(failure)
        if failure is not None:
            self._outcome = None
        return failure

    def _finish(self, step: int) -> str | None:
        """Waits until a checkpoint is complete; returns why it is not. Runs in the background."""
        assert self._manager is not None
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            if not (self.directory / str(step) / FILES).exists():
                failure = checkpoint_files.describe_failure(error)
                if failure is None:
                    raise
                return failure
            # Complete, but an older one could not be removed.
        if jax.process_index() == 0:
            self._background.submit(self._add_digests, step)
        return None

    def _add_digests(self, step: int) -> None:
        # It may have been removed meanwhile, for a newer one. Without digests of large files, the
        # sums of the arrays serve as well.
        with contextlib.suppress(OSError):
            checkpoint_files.write_list(self.directory / str(step), digests=True)

    def is_settled(self) -> bool:
        """Returns whether nothing is being written, the same on every process."""
        return self._outcome is None

    def poll(self, seconds: float = 0.0) -> None:
        """Calls `settle` if it need not wait longer than so many seconds on any process."""
        if self._outcome is None:
            return
        is_done = bool(concurrent.futures.wait([self._outcome], seconds).done)
        if jax.process_count() > 1:
            is_done = bool(multihost_utils.process_allgather(np.bool_(is_done)).all())
        if is_done:
            self.settle()

    def settle(self) -> None:
        """Waits until everything is written, and counts a failure."""
        if self._outcome is None:
            return
        outcome, self._outcome = self._outcome, None
        failure = self._agreed(outcome.result())
        if failure is not None:
            self._count(self._saving, failure)
            return
        self.last_saved = self._saving
        if self.failures:
            log.info("the checkpoint of step %d is saved: the storage works again", self._saving)
            self.failures = 0

    def _count(self, step: int, failure: str) -> None:
        self.failures += 1
        self.failure = failure
        if self._manager is not None:
            # What failed leaves threads and errors behind, which would fail the next attempt too.
            with contextlib.suppress(Exception):
                self._manager.close()
            self._manager = None
        if jax.process_index() == 0:
            # Also because the files of the log may need the space.
            with contextlib.suppress(Exception):
                for path in self.directory.glob(f"{step}.*"):
                    path.rmtree()

    def _agreed(self, failure: str | None) -> str | None:
        """Returns a failure on every process if there is one on any."""
        if jax.process_count() == 1:
            return failure
        failed = multihost_utils.process_allgather(np.bool_(failure is not None))
        if not failed.any():
            return None
        return failure or f"process {int(np.argmax(failed))} failed; its log says why"

    def _obstacle(self) -> str | None:
        """Returns why nothing can be saved now, without Orbax, which is slow to give up."""
        probe = self.directory / ".probe"
        try:
            probe.parent.mkdir(parents=True, exist_ok=True)
            try:
                probe.write_text("x")
            finally:
                with contextlib.suppress(Exception):
                    probe.unlink(missing_ok=True)
            if steps := [] if is_remote(probe) else self.all_steps():
                listed = json.loads((self.directory / str(steps[-1]) / FILES).read_text())
                needed = sum(size for size, _ in listed.values())
                free = shutil.disk_usage(self.directory).free
                if free < needed:
                    return f"No space left: {free / 1e9:.3g} of {needed / 1e9:.3g} GB are free"
        except (FileNotFoundError, ValueError, TypeError, AttributeError):
            return None  # A checkpoint without a list.
        except Exception as error:
            failure = checkpoint_files.describe_failure(error)
            if failure is None:
                raise
            return failure
        return None

    def _open(self) -> ocp.CheckpointManager:
        """Returns Orbax's manager; creates the directory and removes what is unfinished there."""
        if self._manager is None:
            _hold_back_late_callbacks()
            every = self._keep_every
            self._manager = ocp.CheckpointManager(
                self.directory,
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=checkpoint_managers.AnyPreservationPolicy(
                        [
                            checkpoint_managers.LatestN(self._keep),
                            _KeepBest(self),
                            *([] if every is None else [checkpoint_managers.EveryNSteps(every)]),
                        ]
                    ),
                    cleanup_tmp_directories=True,
                    async_options=ocp.options.AsyncOptions(
                        barrier_sync_fn=self._barrier,
                        post_finalization_callback=self._list_files,
                        # If that failed in the background, other threads would wait for it for
                        # five minutes, and the process for them.
                        create_directories_asynchronously=False,
                    ),
                ),
                item_names=(STATE, RECORD),
            )
        return self._manager

    def _list_files(self) -> None:
        """Lists what a checkpoint holds; Orbax calls it in the background before it is complete."""
        if jax.process_index() != 0:
            return
        name = str(self._saving)
        for path in self.directory.iterdir():  # Until it is complete, its name has an ending.
            if path.name.split(".")[0] == name and (path / STATE).is_dir():
                checkpoint_files.write_list(path, digests=False, arrays=self._arrays)
        if self.best is not None and self.best.step == self._saving:
            self.write_best()

    def write_best(self) -> None:
        """Writes ``best_checkpoint.json``, or removes it where there is no best checkpoint.

        Only the first process writes. While training, this happens when a checkpoint is complete.
        """
        if jax.process_index() != 0:
            return
        path = self.directory.parent / BEST_FILE
        if self.best is None:
            path.unlink(missing_ok=True)
        else:
            text = json.dumps(dataclasses.asdict(self.best), indent=2) + "\n"
            write_atomically(path, text.encode())

    def wait(self) -> None:
        """Waits until everything is written."""
        self.settle()

    def close(self, *, alone: bool = False) -> None:
        """Waits until everything is written, digests included, and releases the directory.

        Args:
            alone: Whether other processes may be elsewhere, since this one has failed; what became
                of their parts is not asked.
        """
        if alone and self._outcome is not None:
            outcome, self._outcome = self._outcome, None
            if (failure := outcome.result()) is not None:
                log.warning("the checkpoint of step %d is not saved: %s", self._saving, failure)
        self.settle()
        self._background.shutdown()
        if self._manager is not None:
            self._manager.close()
            self._manager = None

    # ----------------------------------------------------------------------------- restoring

    def restore_latest(
        self, abstract: TrainState, *, with_optimizer: bool = True
    ) -> tuple[TrainState, dict[str, Any]] | None:
        """Restores the newest undamaged checkpoint in the given layout.

        Training is a function of the step, so resuming from an older checkpoint gives the same
        result, only later. Newer checkpoints, which are damaged, are moved to
        ``damaged_checkpoints/`` beside the directory, and a warning names each.

        Args:
            abstract: ``ShapeDtypeStruct`` with shardings, which may be of another mesh than the
                one that saved, and of other types.
            with_optimizer: Whether to restore the state of the optimizer; None is in its place
                otherwise.

        Returns:
            State and JSON record; None if there is no checkpoint.

        Raises:
            UserError: The checkpoint holds parameters of another model, or none is whole.
            RestartableError: The object store does not answer.
        """
        return restore_newest((self,), abstract, with_optimizer=with_optimizer)

    def restore(self, step: int, abstract: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """Restores the checkpoint of one step.

        Args:
            step: The step.
            abstract: The layout, as `restore_latest` takes it.

        Returns:
            State and JSON record.

        Raises:
            UserError: It does not exist, is damaged, or is of another model.
            RestartableError: The object store does not answer.
        """
        self.settle()
        steps = self.all_steps()
        if step not in steps:
            raise UserError(
                f"{self.directory} has no checkpoint {step}; it has those of steps "
                f"{', '.join(map(str, steps)) or 'none'}."
            )
        try:
            return self._restore(step, abstract)
        except _DamageError as error:
            raise checkpoint_files.refusal(self.directory / str(step), str(error)) from error

    def remove_after(self, step: int) -> None:
        """Removes the checkpoints of later steps, which a run that has rolled back does again."""
        self.settle()
        for later in self.all_steps():
            if later > step:
                self._open().delete(later)

    def set_aside(self, reasons: Mapping[int, str], consequence: str = "") -> None:
        """Moves checkpoints away, so that their steps can be saved again; all processes must call.

        Args:
            reasons: What is wrong with the checkpoint of each step.
            consequence: What is done instead, for the warning.
        """
        if not reasons:
            return
        for step, reason in reasons.items() if jax.process_index() == 0 else ():
            place = self.directory.parent / SET_ASIDE
            place.mkdir(exist_ok=True)
            number = 0
            while (target := place / (f"{step}.{number}" if number else str(step))).exists():
                number += 1
            path = self.directory / str(step)
            text = f"the checkpoint {path} is damaged ({reason}) and was moved to {target}"
            log.warning("%s", f"{text}; {consequence}" if consequence else text)
            move_tree(path, target)
        if jax.process_count() > 1:
            distributed.meet("damaged checkpoints set aside")
        if self._manager is not None:
            self._manager.reload()

    def _restore(
        self, step: int, abstract: TrainState, with_optimizer: bool = True
    ) -> tuple[TrainState, dict[str, Any]]:
        """Restores and verifies one checkpoint.

        Raises:
            _DamageError: It is damaged, on every process alike.
        """
        directory = self.directory / str(step)
        # The first process decides for all: others may see other files of a shared directory, and
        # must not restore another step.
        reason = checkpoint_files.damage(directory) if jax.process_index() == 0 else None
        if (reason := self._agreed(reason)) is not None:
            raise _DamageError(reason)
        check_same_model(directory, abstract, optimizer=with_optimizer)
        if not with_optimizer:
            abstract = abstract.replace(opt_state=None)
        listed = checkpoint_files.listed_arrays(directory)
        # In the types that were saved, whose sums are known.
        saved = jax.tree_util.tree_unflatten(
            jax.tree.structure(abstract),
            [
                jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(listed[name][0]), sharding=leaf.sharding)
                if name in listed
                else leaf
                for name, leaf in array_checksums.named_arrays(abstract)
            ],
        )
        try:
            if with_optimizer:
                restored = self._open().restore(
                    step,
                    args=ocp.args.Composite(
                        state=ocp.args.StandardRestore(saved), data=ocp.args.JsonRestore()
                    ),
                )
            else:
                restored = {
                    "state": _restore_without_optimizer(directory, saved),
                    "data": saved_record(directory),
                }
        except Exception:
            if reason := checkpoint_files.damage(directory, thorough=True):
                raise _DamageError(reason) from None
            raise
        state = restored["state"]
        sums = {name: value for name, (_, value) in listed.items()}
        name = array_checksums.first_difference(sums, array_checksums.checksums(state))
        if name is not None:
            raise _DamageError(f"the array {name} in {STATE} has other values than were written")
        state = jax.tree.map(
            lambda leaf, wanted: leaf if leaf.dtype == wanted.dtype else leaf.astype(wanted.dtype),
            state,
            abstract,
        )
        self.last_saved = step
        return state, dict(restored["data"])


def check_same_model(
    step_directory: epath.PathLike, abstract: TrainState, *, optimizer: bool = True
) -> None:
    """Checks that a checkpoint has the arrays of a run; its files are only read.

    Args:
        step_directory: Directory of the checkpoint.
        abstract: ``ShapeDtypeStruct`` of the run's state.
        optimizer: Whether the state of the optimizer must be there.

    Raises:
        UserError: It is of another model or another optimizer, or damaged.
    """
    directory = epath.Path(step_directory)
    saved = _metadata(directory)
    if saved_record(directory).get("averaged_steps"):
        raise UserError(
            f"{directory} is an average of checkpoints, from which training cannot continue: "
            "train in another model directory, with INIT_FROM for this one."
        )
    for field in ("params", "ema_params", *(["opt_state"] if optimizer else [])):
        in_checkpoint = _shapes(saved.get(field))
        in_run = _shapes(getattr(abstract, field))
        if in_checkpoint == in_run:
            continue
        # What one of them lacks, or has in another shape.
        names = sorted(set(in_checkpoint.items()) ^ set(in_run.items()))
        name = names[0][0]
        if all(changed.startswith(f"{FROZEN_DURATIONS}/") for changed, _ in names):
            raise UserError(
                f"The checkpoint {directory} lacks the frozen durations of this run: it was "
                "written by an earlier version, or without a stream of texts; start a new run "
                "in another model directory, with the init_from of this one."
            )
        if field == "opt_state":
            raise UserError(
                f"The checkpoint {directory} is of another optimizer: its state {name} is "
                f"{in_checkpoint.get(name, 'absent')} there and {in_run.get(name, 'absent')} "
                "here; take the optimizer with which the run began, or begin a new run with "
                "this one as init_from."
            )
        raise UserError(
            f"The checkpoint {directory} is of another model or setting: {field} {name} is "
            f"{in_checkpoint.get(name, 'absent')} there and {in_run.get(name, 'absent')} here; "
            "choose another model directory, or give this one as init_from."
        )


def has_same_optimizer(step_directory: epath.PathLike, abstract: TrainState) -> bool:
    """Returns whether a checkpoint has the optimizer state of a run, by names and shapes."""
    saved = _metadata(epath.Path(step_directory)).get("opt_state")
    return _shapes(saved) == _shapes(abstract.opt_state)


def _restore_without_optimizer(step_directory: epath.Path, abstract: TrainState) -> TrainState:
    """Restores all of a state but that of its optimizer, which is None."""
    fields = {name: getattr(abstract, name) for name in ("step", "params", "ema_params")}
    with ocp.PyTreeCheckpointer() as checkpointer:
        restored = checkpointer.restore(
            step_directory / STATE,
            args=ocp.args.PyTreeRestore(
                item=fields,
                restore_args=ocp.checkpoint_utils.construct_restore_args(fields),
                partial_restore=True,
            ),
        )
    return TrainState(opt_state=None, **restored)


def restore_newest(
    places: Sequence[Checkpoints], abstract: TrainState, *, with_optimizer: bool = True
) -> tuple[TrainState, dict[str, Any]] | None:
    """Restores the newest undamaged checkpoint of one run from several directories.

    Args:
        places: The directories; of equal steps, that of the first one is taken.
        abstract: The layout, as `Checkpoints.restore_latest` takes it, which says the rest.
        with_optimizer: Whether to restore the state of the optimizer.
    """
    found = [(step, -index) for index, place in enumerate(places) for step in place.all_steps()]
    damaged: dict[epath.Path, str] = {}
    for step, index in sorted(found, reverse=True):
        try:
            restored = places[-index]._restore(step, abstract, with_optimizer)
        except _DamageError as error:
            damaged[places[-index].directory / str(step)] = str(error)
            continue
        for place in places:
            reasons = {
                int(path.name): reason
                for path, reason in damaged.items()
                if path.parent == place.directory
            }
            place.set_aside(reasons, f"continuing from step {step}")
        return restored
    if damaged:
        raise _none_whole(damaged)
    return None


@functools.cache
def _hold_back_late_callbacks() -> None:
    """Keeps from stderr what TensorStore's threads raise when the first array of many has failed.

    Each of the others that fails calls an event loop that Orbax has closed by then.
    """
    unraisable, printed = sys.unraisablehook, sys.excepthook

    def is_late(error: BaseException | None) -> bool:
        return isinstance(error, RuntimeError) and "Event loop is closed" in str(error)

    def unraisable_hook(arguments: Any) -> None:
        if not is_late(arguments.exc_value):
            unraisable(arguments)

    def hook(kind: Any, error: BaseException, stack: Any) -> None:
        # Called from C++ as well, for what its threads raise.
        if threading.current_thread() is threading.main_thread() or not is_late(error):
            printed(kind, error, stack)

    sys.unraisablehook, sys.excepthook = unraisable_hook, hook


class _DamageError(Exception):
    """A checkpoint is not as it was written; the message says how."""


@dataclasses.dataclass(frozen=True)
class PartialRestoreReport:
    """Records what became of each parameter in a partial restore.

    Attributes:
        loaded: Names of the parameters that were read.
        skipped: Names in the checkpoint that were not read, each with the reason.
        new: Names in the model that keep their initial value.
        copied: Names in the model that hold durations (`modules.duration`), with the values
            that the parameters they are copies of begin with.
    """

    loaded: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]
    new: tuple[str, ...]
    copied: tuple[str, ...] = ()

    def summary(self) -> str:
        """Formats the report by module: counts, and one example of what was skipped in each."""
        lines = [self._counts()]
        for module in sorted({_module(name) for name in self._names()}):
            loaded = [name for name in self.loaded if _module(name) == module]
            skipped = [pair for pair in self.skipped if _module(pair[0]) == module]
            new = [name for name in self.new if _module(name) == module]
            copied = [name for name in self.copied if _module(name) == module]
            all_counts = (
                (loaded, "loaded"),
                (skipped, "skipped"),
                (new, "new"),
                (copied, "copied to hold durations"),
            )
            counts = [f"{len(names)} {what}" for names, what in all_counts if names]
            line = f"  {module}: {', '.join(counts)}"
            if skipped:
                name, reason = skipped[0]
                line += f" ({name}: {reason}{', ...' if len(skipped) > 1 else ''})"
            lines.append(line)
        return "\n".join(lines)

    def text(self) -> str:
        """Formats the whole report, one line per parameter."""
        return "\n".join(
            [
                self._counts(),
                "",
                "loaded: in the checkpoint and in the model",
                *(f"  {name}" for name in self.loaded),
                "",
                "skipped: in the checkpoint, and not restored",
                *(f"  {name}: {reason}" for name, reason in self.skipped),
                "",
                "new: in the model, with their initial values",
                *(f"  {name}" for name in self.new),
                "",
                "copied: in the model, to hold the durations with which it begins",
                *(f"  {name}" for name in self.copied),
                "",
            ]
        )

    def _counts(self) -> str:
        return (
            f"{len(self.loaded)} parameters loaded, {len(self.skipped)} skipped, "
            f"{len(self.new)} new"
        )

    def _names(self) -> tuple[str, ...]:
        return (*self.loaded, *(name for name, _ in self.skipped), *self.new, *self.copied)


def mismatch_reason(
    name: str,
    shape: tuple[int, ...],
    wanted: Mapping[str, Any],
    *,
    include: Sequence[str],
    exclude: Sequence[str],
) -> str | None:
    """Returns why a parameter of a checkpoint is not restored; None if it is.

    Args:
        name: Name of the parameter.
        shape: Shape of the parameter.
        wanted: The parameters of the model by name.
        include: Regular expressions of names that may be restored.
        exclude: Regular expressions of names that may not.
    """
    if any(re.fullmatch(pattern, name) for pattern in exclude):
        return "excluded by init_exclude"
    if not any(re.fullmatch(pattern, name) for pattern in include):
        return "not in init_include"
    if name not in wanted:
        return _stacked_otherwise(name, wanted) or "not in this model"
    here = tuple(wanted[name].shape)
    if here != shape:
        return f"shape {shape} there, {here} here"
    return None


def _stacked_otherwise(name: str, wanted: Mapping[str, Any]) -> str | None:
    """Returns the reason if only one of checkpoint and model scans the layers of a stack."""
    scanned = _SCANNED.fullmatch(name)
    if scanned and f"{scanned[1] or ''}layer_0{scanned[2]}" in wanted:
        return "one array for all layers there, one per layer here: set scan = True for the stack"
    unrolled = _UNROLLED.fullmatch(name)
    if unrolled and f"{unrolled[1] or ''}layers{unrolled[2]}" in wanted:
        return "one array per layer there, one for all layers here: set scan = False for the stack"
    return None


def _module(name: str) -> str:
    return name.split("/")[0]


def restore_params(
    directory: epath.PathLike, which: Which = "ema", *, abstract_params: Any = None
) -> Any:
    """Restores the parameters of a checkpoint.

    Args:
        directory: A checkpoint, as `find_checkpoint` takes it.
        which: ``ema`` for the moving average, ``params`` for the values of the last step.
        abstract_params: Shapes and shardings to restore to; every one must be in the checkpoint.
            Without it, the whole tree is read as numpy arrays.

    Returns:
        The tree of parameters.

    Raises:
        UserError: The directory holds no checkpoint, or not these parameters, or a damaged one.
    """
    step_directory = find_checkpoint(directory)
    if abstract_params is None:
        check_whole(step_directory)
        saved = _saved_parameters(step_directory, which)
        tree: dict[str, Any] = {}
        for path, value in _read(step_directory, which, {path: None for path in saved}).items():
            _insert(tree, path, value)
        return tree
    params, report = partial_restore(abstract_params, step_directory, which)
    if report.new:
        reasons = dict(report.skipped)
        name = report.new[0]
        raise UserError(
            f"The checkpoint {step_directory} does not fit the model: {name}: "
            f"{reasons.get(name, 'not in the checkpoint')}; use the model that it was trained with."
        )
    return params


def partial_restore(
    params: Any,
    directory: epath.PathLike,
    which: Which = "ema",
    *,
    include: Sequence[str] = (".*",),
    exclude: Sequence[str] = (),
) -> tuple[Any, PartialRestoreReport]:
    """Restores the parameters of a checkpoint that fit a model by name and shape.

    A model that holds durations (`modules.duration`) holds those of the checkpoint.

    Args:
        params: Tree of arrays, or of ``ShapeDtypeStruct`` with or without shardings.
        directory: A checkpoint, as `find_checkpoint` takes it.
        which: ``ema`` for the moving average, ``params`` for the values of the last step.
        include: Regular expressions of whole names in the checkpoint: only these are read.
        exclude: Regular expressions of whole names in the checkpoint that are not read, although
            they may fit.

    Returns:
        The tree with the fitting leaves replaced, in their types and shardings; and a report.

    Raises:
        UserError: The directory holds no checkpoint or a damaged one, nothing in it fits, or a
            pattern matches nothing.
    """
    step_directory = find_checkpoint(directory)
    check_whole(step_directory)
    saved = _saved_parameters(step_directory, which)
    paths = {parameter_trees.parameter_name(path): path for path in saved}
    wanted = dict(parameter_trees.named_leaves(params))
    for option, patterns in (("init_include", include), ("init_exclude", exclude)):
        for pattern in patterns:
            parameter_groups.check_match(
                pattern, list(paths), f"of {option}, looked up in {step_directory},"
            )
    targets: dict[tuple[str, ...], Any] = {}
    skipped: list[tuple[str, str]] = []
    for name, path in paths.items():
        reason = mismatch_reason(
            name, tuple(saved[path].shape), wanted, include=include, exclude=exclude
        )
        if reason is None:
            targets[path] = wanted[name]
        else:
            skipped.append((name, reason))
    if not targets:
        raise UserError(
            f"No parameter of {step_directory} fits this model by name and shape "
            f"({skipped[0][0]}: {skipped[0][1]}); choose the checkpoint of a model of the same "
            "size, or other parameters in init_include and init_exclude."
        )
    values = _read(step_directory, which, targets)
    loaded = {parameter_trees.parameter_name(path): value for path, value in values.items()}
    merged = parameter_trees.map_named(lambda name, leaf: loaded.get(name, leaf), params)
    new = [name for name in wanted if name not in loaded]
    copied = names_to_freeze(wanted, loaded)
    if copied:
        merged = freeze_durations(merged)
    return merged, PartialRestoreReport(
        tuple(loaded), tuple(skipped), tuple(name for name in new if name not in copied), copied
    )


def saved_shapes(directory: epath.PathLike, which: Which = "ema") -> dict[str, tuple[int, ...]]:
    """Reads the shape of each parameter of a checkpoint, by name.

    Args:
        directory: A checkpoint, as `find_checkpoint` takes it.
        which: ``ema`` for the moving average, ``params`` for the values of the last step.

    Raises:
        UserError: The directory holds no checkpoint, or not these parameters.
    """
    saved = _saved_parameters(find_checkpoint(directory), which)
    return {parameter_trees.parameter_name(path): tuple(leaf.shape) for path, leaf in saved.items()}


def saved_record(step_directory: epath.PathLike) -> dict[str, Any]:
    """Reads the JSON record of one checkpoint (see `Checkpoints.save`); empty where it has none.

    Raises:
        UserError: The checkpoint is damaged.
    """
    step_directory = epath.Path(step_directory)
    path = step_directory / RECORD
    if not path.is_dir():
        return {}
    with _naming_damage(step_directory):
        with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer:
            return dict(checkpointer.restore(path))


def find_checkpoint(directory: epath.PathLike) -> epath.Path:
    """Finds the directory of one checkpoint.

    Args:
        directory: A model directory or its ``checkpoints`` directory, with ``/latest`` after it or
            not, for the newest checkpoint that is whole (a warning names newer ones that are not);
            one of the two with ``/best`` after it; or a checkpoint itself.

    Raises:
        UserError: There is no complete checkpoint, none that is whole, or none that is known as the
            best.
        RestartableError: The object store does not answer.
    """
    path = absolute_path(directory)
    if (path / STATE).is_dir():
        return path
    if path.name == "best" and not path.exists():
        return _best_checkpoint(path.parent)
    if path.name == "latest" and not path.exists():
        path = path.parent
    for parent in (path / SUBDIRECTORY, path):
        if parent.is_dir():
            steps = ocp.utils.checkpoint_steps(parent)
            if steps:
                return parent / str(_newest_whole(parent, steps))
    if path.parent.name == SUBDIRECTORY and path.parent.is_dir():
        if steps := sorted(ocp.utils.checkpoint_steps(path.parent)):
            if path.is_dir():
                check_whole(path)
            raise UserError(
                f"{path.parent.parent} has no checkpoint {path.name}; it has those of steps "
                f"{', '.join(map(str, steps))}."
            )
    raise UserError(
        f"{directory} is not a checkpoint directory: give a model directory that holds "
        f"{SUBDIRECTORY}/<step>, or one such step{models_below(path)}."
    )


def _newest_whole(directory: epath.Path, steps: Sequence[int]) -> int:
    """Returns the step of the newest checkpoint that is whole, and warns once of newer ones."""
    step, damaged = checkpoint_files.newest_whole(directory, steps)
    if step is None:
        raise _none_whole({directory / str(number): reason for number, reason in damaged.items()})
    for number, reason in damaged.items():
        path = directory / str(number)
        if (path, reason) not in _warned:
            _warned.add((path, reason))
            log.warning(
                "the checkpoint %s is damaged (%s); taking that of step %d", path, reason, step
            )
    return step


def _none_whole(damaged: Mapping[epath.Path, str]) -> UserError:
    (newest, reason), *older = damaged.items()
    return UserError(
        f"No checkpoint is whole: {newest} ({reason})"
        + (f", nor {len(older)} before it" if older else "")
        + "; copy an undamaged one there, or choose another model directory."
    )


_warned: set[tuple[epath.Path, str]] = set()


def _best_checkpoint(directory: epath.Path) -> epath.Path:
    model_dir = directory.parent if directory.name == SUBDIRECTORY else directory
    path = model_dir / BEST_FILE
    if not path.exists():
        raise UserError(
            f"{model_dir} has no best checkpoint: its run measured no validation metric "
            "(EVAL_EVERY); leave /best out for the newest checkpoint."
        )
    step = json.loads(path.read_text())["step"]
    checkpoint = model_dir / SUBDIRECTORY / str(step)
    if not (checkpoint / STATE).is_dir():
        raise UserError(
            f"{path} names step {step}, but {checkpoint} does not exist; copy it there, or leave "
            "/best out for the newest checkpoint."
        )
    return checkpoint


def as_saved(run: TrainRun, directory: epath.PathLike, which: Which = "ema") -> TrainRun:
    """Adapts a run to a checkpoint of an earlier version, without what its model has gained since.

    That is, so far, the final layer normalisation of the refiner.

    Args:
        run: The run that the model directory describes.
        directory: A checkpoint, as `find_checkpoint` takes it.
        which: The parameters that are to be read.

    Returns:
        The run, whose model computes what it computed when it was trained.
    """
    refiner = getattr(run.model, "refiner", None)
    if refiner is None or not refiner.normalize:
        return run
    if "refiner/final_norm/scale" in saved_shapes(directory, which):
        return run
    model = run.model.clone(refiner=refiner.clone(normalize=False))
    return dataclasses.replace(run, model=model)


def as_begun(run: TrainRun, directory: epath.PathLike, steps: Sequence[int]) -> TrainRun:
    """Adapts a run to its own checkpoints, if an earlier version began it.

    Args:
        run: The run.
        directory: The directory of its checkpoints.
        steps: Their steps, ascending; empty for a run that begins.

    Returns:
        The run as `as_saved` adapts it.
    """
    for step in reversed(steps):
        try:
            begun = as_saved(run, epath.Path(directory) / str(step), "params")
        except UserError:
            # A damaged one; `Checkpoints.restore_latest` names it. All are of one model.
            continue
        if begun is not run:
            log.warning(
                "%s was started by an earlier version: its refiner stays without a final layer "
                "normalisation",
                epath.Path(directory).parent,
            )
        return begun
    return run


@contextlib.contextmanager
def _naming_damage(step_directory: epath.Path) -> Iterator[None]:
    """Turns what reading a part of a damaged checkpoint raises into one line that names it."""
    try:
        yield
    except (ValueError, TypeError, OSError, KeyError):
        reason = checkpoint_files.damage(step_directory, thorough=True)
        if reason is not None:
            raise checkpoint_files.refusal(step_directory, reason) from None
        raise


def _metadata(step_directory: epath.Path) -> Any:
    with _naming_damage(step_directory):
        return ocp.PyTreeCheckpointHandler().metadata(step_directory / STATE).tree


def _flat(tree: Any) -> dict[tuple[str, ...], Any]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {parameter_trees.path_keys(path): leaf for path, leaf in leaves}


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {
        parameter_trees.parameter_name(path): tuple(leaf.shape)
        for path, leaf in _flat(tree).items()
        if hasattr(leaf, "shape")  # Not the empty states of some optimizers.
    }


def _saved_parameters(step_directory: epath.Path, which: Which) -> dict[tuple[str, ...], Any]:
    """Reads paths and metadata of the saved parameters."""
    if which not in _STATE_FIELDS:
        raise UserError(f"Parameters {which!r} are unknown; choose 'ema' or 'params'.")
    saved = _flat(_metadata(step_directory).get(_STATE_FIELDS[which]))
    if not saved:
        raise UserError(
            f"The checkpoint {step_directory} holds no moving average of the parameters; "
            "ask for 'params' instead of 'ema' (for INIT_FROM: --gin.TrainRun.init_which=params)."
        )
    return saved


def _read(
    step_directory: epath.Path, which: Which, targets: Mapping[tuple[str, ...], Any]
) -> dict[tuple[str, ...], Any]:
    """Reads some arrays; a target with a sharding is restored to it, others as numpy arrays."""
    item: dict[str, Any] = {}
    restore_args: dict[str, Any] = {}
    field = _STATE_FIELDS[which]
    # Files on a disk have been verified before; of an object store only what is read is.
    listed = checkpoint_files.listed_arrays(step_directory) if is_remote(step_directory) else {}
    for path, target in targets.items():
        sharding = getattr(target, "sharding", None)
        kind, _ = listed.get("/".join((field, *path)), (getattr(target, "dtype", None), 0))
        if sharding is None:
            arguments = ocp.RestoreArgs(restore_type=np.ndarray, dtype=kind)
        else:
            arguments = ocp.ArrayRestoreArgs(
                restore_type=jax.Array, dtype=kind, sharding=sharding, global_shape=target.shape
            )
        _insert(item, path, 0)
        _insert(restore_args, path, arguments)
    with _naming_damage(step_directory), ocp.PyTreeCheckpointer() as checkpointer:
        restored = checkpointer.restore(
            step_directory / STATE,
            args=ocp.args.PyTreeRestore(
                item={field: item}, restore_args={field: restore_args}, partial_restore=True
            ),
        )
    if listed:
        sums = {name: value for name, (_, value) in listed.items()}
        found = array_checksums.checksums({field: restored[field]})
        name = array_checksums.first_difference(sums, found)
        if name is not None:
            reason = f"the array {name} in {STATE} has other values than were written"
            raise checkpoint_files.refusal(step_directory, reason)
    values = _flat(restored[field])
    return {
        path: value
        if (wanted := getattr(targets[path], "dtype", None)) in (None, value.dtype)
        else value.astype(wanted)
        for path, value in values.items()
    }


def _insert(tree: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = value
