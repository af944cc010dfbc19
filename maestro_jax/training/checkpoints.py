"""Saves and restores the training state of a run.

A model directory holds ``checkpoints/<step>/state`` (the training state) and
``checkpoints/<step>/data`` (a small JSON record, `records.TrainingRecord`). The files and arrays of
a checkpoint are verified when it is restored (`checkpoint_files`).

The newest checkpoints are kept, and the best one of a run with validation; the file
``best_checkpoint.json`` names it. `saved_checkpoints` finds and reads what was saved, and
`partial_restore` puts its parameters into another model.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import json
import logging
import shutil
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers

from maestro_jax.errors import RestartableError
from maestro_jax.files import (
    absolute_path,
    is_remote,
    move_tree,
    write_atomically,
)
from maestro_jax.training import (
    array_checksums,
    checkpoint_files,
    distributed,
)
from maestro_jax.training.checkpoint_files import FILES, RECORD, STATE
from maestro_jax.training.commit_barrier import CommitBarrier
from maestro_jax.training.saved_checkpoints import (
    BEST_FILE,
    SUBDIRECTORY,
    check_same_model,
    none_whole,
    saved_record,
)
from maestro_jax.training.state import TrainState

if TYPE_CHECKING:
    pass

log = logging.getLogger(__name__)

SET_ASIDE = "damaged_checkpoints"
"""Directory beside ``checkpoints`` for those that were damaged when training was resumed."""


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
            checkpoint_files.add_digests(self.directory / str(step))

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
                checkpoint_files.write_list(path, arrays=self._arrays)
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
        self,
        abstract: TrainState,
        *,
        with_optimizer: bool = True,
        last_step: int | None = None,
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
            last_step: The newest checkpoint is that of this step, or an earlier one; None for the
                newest of all.

        Returns:
            State and JSON record; None if there is no checkpoint.

        Raises:
            UserError: The checkpoint holds parameters of another model, or none is whole.
            RestartableError: The object store does not answer.
        """
        self.settle()
        return restore_newest((self,), abstract, with_optimizer=with_optimizer, last_step=last_step)

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
        try:
            check_same_model(directory, abstract, optimizer=with_optimizer)
        except checkpoint_files.DamagedCheckpointError as error:
            # Damaged before its files were listed.
            raise _DamageError(error.reason) from None
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
    places: Sequence[Checkpoints],
    abstract: TrainState,
    *,
    with_optimizer: bool = True,
    last_step: int | None = None,
) -> tuple[TrainState, dict[str, Any]] | None:
    """Restores the newest undamaged checkpoint of one run from several directories.

    Args:
        places: The directories; of equal steps, that of the first one is taken.
        abstract: The layout, as `Checkpoints.restore_latest` takes it, which says the rest.
        with_optimizer: Whether to restore the state of the optimizer.
        last_step: The newest step that is taken; None for any.
    """
    found = [
        (step, -index)
        for index, place in enumerate(places)
        for step in place.all_steps()
        if last_step is None or step <= last_step
    ]
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
        raise none_whole(damaged)
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
