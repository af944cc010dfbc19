"""Finds the checkpoints of a model directory, and reads parts of them.

Where a checkpoint is asked for, ``MODEL_DIR`` means the newest one that is whole,
``MODEL_DIR/best`` the best one, and ``MODEL_DIR/checkpoints/<step>`` that of one step. The latter
two are refused if they are damaged.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import logging
import sys
import traceback
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import traverse_util

from maestro_jax.errors import UserError
from maestro_jax.files import absolute_path, is_remote, models_below
from maestro_jax.modules.duration import FROZEN_DURATIONS
from maestro_jax.training import array_checksums, checkpoint_files, parameter_trees
from maestro_jax.training.checkpoint_files import RECORD, STATE, check_whole
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


def _hide_late_answers(hook: Callable[..., Any]) -> Callable[..., None]:
    """Returns a hook for uncaught errors that leaves out those of reads that nobody waits for.

    When one array of a damaged checkpoint cannot be read, Orbax closes its event loop, and each
    array that TensorStore has read later prints a traceback through `sys.excepthook`.
    """

    def hide(kind: type[BaseException], error: BaseException, found: TracebackType | None) -> None:
        files = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(found)]
        late = isinstance(error, RuntimeError) and str(error) == "Event loop is closed"
        if not (late and all("asyncio" in file for file in files)):
            hook(kind, error, found)

    return hide


sys.excepthook = _hide_late_answers(sys.excepthook)


SUBDIRECTORY = "checkpoints"
BEST_FILE = "best_checkpoint.json"
Which = Literal["ema", "params"]
_STATE_FIELDS = {"ema": "ema_params", "params": "params"}


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
        raise none_whole({directory / str(number): reason for number, reason in damaged.items()})
    for number, reason in damaged.items():
        path = directory / str(number)
        if (path, reason) not in _warned:
            _warned.add((path, reason))
            log.warning(
                "the checkpoint %s is damaged (%s); taking that of step %d", path, reason, step
            )
    return step


def none_whole(damaged: Mapping[epath.Path, str]) -> UserError:
    """Returns the error of a directory without a checkpoint that is whole.

    Args:
        damaged: What is wrong with each checkpoint, the newest first.
    """
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


def saved_shapes(directory: epath.PathLike, which: Which = "ema") -> dict[str, tuple[int, ...]]:
    """Reads the shape of each parameter of a checkpoint, by name.

    Args:
        directory: A checkpoint, as `find_checkpoint` takes it.
        which: ``ema`` for the moving average, ``params`` for the values of the last step.

    Raises:
        UserError: The directory holds no checkpoint, or not these parameters.
    """
    saved = saved_parameters(find_checkpoint(directory), which)
    return {parameter_trees.parameter_name(path): tuple(leaf.shape) for path, leaf in saved.items()}


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
        # It takes Orbax a while, and a start looks at it several times.
        return _read_metadata(step_directory, checkpoint_files.state_of_files(step_directory))


@functools.lru_cache(maxsize=2)
def _read_metadata(step_directory: epath.Path, files: Hashable) -> Any:
    del files  # What was read holds until they change.
    return ocp.PyTreeCheckpointHandler().metadata(step_directory / STATE).tree


def saved_parameters(step_directory: epath.Path, which: Which) -> dict[tuple[str, ...], Any]:
    """Reads the path and the metadata of each saved parameter.

    Args:
        step_directory: Directory of a checkpoint.
        which: ``ema`` for the moving average, ``params`` for the values of the last step.

    Raises:
        UserError: It holds no such parameters, or is damaged.
    """
    if which not in _STATE_FIELDS:
        raise UserError(f"Parameters {which!r} are unknown; choose 'ema' or 'params'.")
    saved = _flat(_metadata(step_directory).get(_STATE_FIELDS[which]))
    if not saved:
        raise UserError(
            f"The checkpoint {step_directory} holds no moving average of the parameters; "
            "ask for 'params' instead of 'ema' (for INIT_FROM: --gin.TrainRun.init_which=params)."
        )
    return saved


def read_parameters(
    step_directory: epath.Path, which: Which, targets: Mapping[tuple[str, ...], Any]
) -> dict[tuple[str, ...], Any]:
    """Reads some parameters of a checkpoint.

    Args:
        step_directory: Directory of a checkpoint.
        which: ``ema`` for the moving average, ``params`` for the values of the last step.
        targets: From the path of each parameter to its shape and type, as an array or a
            ``ShapeDtypeStruct``; one with a sharding is restored to it, others become numpy arrays.
            None for a numpy array of the type that was saved.

    Returns:
        The parameters by path.

    Raises:
        UserError: The checkpoint is damaged.
    """
    restore_args: dict[tuple[str, ...], ocp.RestoreArgs] = {}
    field = _STATE_FIELDS[which]
    # Files on a disk have been verified before; of an object store only what is read is.
    listed = checkpoint_files.listed_arrays(step_directory) if is_remote(step_directory) else {}
    for path, target in targets.items():
        sharding = getattr(target, "sharding", None)
        kind, _ = listed.get("/".join((field, *path)), (getattr(target, "dtype", None), 0))
        if sharding is None:
            restore_args[path] = ocp.RestoreArgs(restore_type=np.ndarray, dtype=kind)
        else:
            restore_args[path] = ocp.ArrayRestoreArgs(
                restore_type=jax.Array, dtype=kind, sharding=sharding, global_shape=target.shape
            )
    with _naming_damage(step_directory), ocp.PyTreeCheckpointer() as checkpointer:
        restored = checkpointer.restore(
            step_directory / STATE,
            args=ocp.args.PyTreeRestore(
                item={field: traverse_util.unflatten_dict(dict.fromkeys(restore_args, 0))},
                restore_args={field: traverse_util.unflatten_dict(restore_args)},
                partial_restore=True,
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


def _flat(tree: Any) -> dict[tuple[str, ...], Any]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {parameter_trees.path_keys(path): leaf for path, leaf in leaves}


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {
        parameter_trees.parameter_name(path): tuple(leaf.shape)
        for path, leaf in _flat(tree).items()
        if hasattr(leaf, "shape")  # Not the empty states of some optimizers.
    }
