"""Checkpoints: everything that this project asks of Orbax, in one place.

A model directory holds ``checkpoints/<step>/state`` (the training state) and
``checkpoints/<step>/data`` (a small JSON record: step, seed, elapsed time, streams). Its files are
verified before it is restored (`checkpoint_files`).
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers

from maestro_jax.errors import UserError
from maestro_jax.modules import held_durations
from maestro_jax.training import checkpoint_files, parameter_groups, parameter_trees, partial_init
from maestro_jax.training.checkpoint_files import RECORD, STATE, check_whole
from maestro_jax.training.partial_init import PartialRestoreReport
from maestro_jax.training.state import TrainState

log = logging.getLogger(__name__)

SUBDIRECTORY = "checkpoints"
SET_ASIDE = "damaged_checkpoints"
"""Beside it: what was found damaged when training went on from the checkpoint before."""
Which = Literal["ema", "params"]
_STATE_FIELDS = {"ema": "ema_params", "params": "params"}


class Checkpoints:
    """The checkpoints of one model directory.

    Saving is asynchronous: the arrays are copied to the host before ``save`` returns and written
    in the background.

    Args:
        model_dir: The model directory; checkpoints lie in ``checkpoints/`` within.
        keep: The last so many checkpoints are kept.
        best_metric: If given, the checkpoint with the best value of this metric is kept as well.
        best_mode: Whether the best value is the smallest (``min``) or the largest (``max``).
    """

    def __init__(
        self,
        model_dir: epath.PathLike,
        *,
        keep: int = 2,
        best_metric: str | None = None,
        best_mode: Literal["min", "max"] = "min",
    ) -> None:
        """Open the directory, and create it if need be."""
        self.directory = epath.Path(model_dir).expanduser().absolute() / SUBDIRECTORY
        self._saving = -1
        self._digesting = concurrent.futures.ThreadPoolExecutor(1)
        policies: list[checkpoint_managers.PreservationPolicy] = [checkpoint_managers.LatestN(keep)]
        if best_metric is not None:
            policies.append(
                checkpoint_managers.BestN(
                    get_metric_fn=lambda metrics: metrics[best_metric],
                    reverse=best_mode == "min",
                    n=1,
                    keep_checkpoints_without_metrics=False,
                )
            )
        with _quiet_orbax():
            self._manager = ocp.CheckpointManager(
                self.directory,
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
                    cleanup_tmp_directories=True,
                    async_options=ocp.options.AsyncOptions(
                        post_finalization_callback=self._list_files
                    ),
                ),
                item_names=(STATE, RECORD),
            )

    def latest_step(self) -> int | None:
        """The step of the newest checkpoint, or None."""
        return self._manager.latest_step()

    def all_steps(self) -> list[int]:
        """The steps of all checkpoints, in ascending order."""
        return sorted(self._manager.all_steps())

    def save(
        self,
        state: TrainState,
        data: Mapping[str, Any],
        *,
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Begin to save a state; nothing happens if its step has been saved already.

        Args:
            state: The state, whose arrays may be donated as soon as this returns.
            data: What JSON can hold, with the key ``step``.
            metrics: Values among which ``best_metric`` is looked up.
        """
        step = int(data["step"])
        if step in self._manager.all_steps():
            return
        with _quiet_orbax():
            # `_list_files` is called when this one is written, before the next one is begun.
            self._manager.wait_until_finished()
            self._add_digests()
            self._saving = step
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state), data=ocp.args.JsonSave(dict(data))
                ),
                metrics=None if metrics is None else dict(metrics),
                force=True,
            )

    def restore_latest(self, abstract: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
        """The newest checkpoint that is whole, laid out as asked.

        Training is a function of the step, so that going on from an older checkpoint gives the same
        result, only later. Newer ones, which are damaged, are moved to ``damaged_checkpoints/``
        beside the directory, and a warning names each.

        Args:
            abstract: ``ShapeDtypeStruct`` with shardings, which may be of another mesh than the
                one that saved.

        Returns:
            State and JSON record; None when there is no checkpoint.

        Raises:
            UserError: The checkpoint holds parameters of another model, or none is whole.
        """
        steps = self.all_steps()
        if not steps:
            return None
        step, damaged = self._newest_whole(steps)
        self._check_same_model(step, abstract)
        if step != steps[-1]:
            self._set_aside(damaged, step)
        with _quiet_orbax():
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(abstract), data=ocp.args.JsonRestore()
                ),
            )
        return restored["state"], dict(restored["data"])

    def wait(self) -> None:
        """Wait until everything is written."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait until everything is written, and release the directory."""
        self._manager.wait_until_finished()
        self._add_digests()
        self._digesting.shutdown()
        self._manager.close()

    def _list_files(self) -> None:
        """Called by Orbax in the background, when a checkpoint has all its files."""
        if jax.process_index() != 0:
            return
        name = str(self._saving)
        for path in self.directory.iterdir():  # Until it is complete, its name has an ending.
            if path.name.split(".")[0] == name and (path / STATE).is_dir():
                checkpoint_files.write_list(path, digests=False)

    def _add_digests(self) -> None:
        """Begin to add to the list of the checkpoint that is complete what takes its time."""
        step, self._saving = self._saving, -1
        if step < 0 or jax.process_index() != 0:
            return

        def add() -> None:
            # It may have been removed meanwhile, for a newer one; the list of sizes serves as well.
            with contextlib.suppress(OSError):
                checkpoint_files.write_list(self.directory / str(step), digests=True)

        self._digesting.submit(add)

    def _newest_whole(self, steps: Sequence[int]) -> tuple[int, dict[int, str]]:
        """The step of the newest whole checkpoint, the same on every process.

        Returns:
            The step, and what is wrong with each newer one (known to the first process alone).
        """
        chosen: int | None = None
        damaged: dict[int, str] = {}
        if jax.process_index() == 0:
            chosen, damaged = checkpoint_files.newest_whole(self.directory, steps)
        if jax.process_count() > 1:
            sent = np.int32(-1 if chosen is None else chosen)
            step = int(multihost_utils.broadcast_one_to_all(sent))
            chosen = None if step < 0 else step
        if chosen is None:
            reason = damaged.get(steps[-1], "see the log of the first process")
            raise UserError(
                f"No checkpoint is whole: {self.directory / str(steps[-1])} ({reason})"
                + (f", nor {len(steps) - 1} before it" if len(steps) > 1 else "")
                + "; copy one again from where it is whole, or choose another model directory."
            )
        return chosen, damaged

    def _set_aside(self, damaged: Mapping[int, str], step: int) -> None:
        """Move damaged checkpoints away, so that their steps can be saved again."""
        for newer, reason in damaged.items():
            place = self.directory.parent / SET_ASIDE
            place.mkdir(exist_ok=True)
            number = 0
            while (target := place / (f"{newer}.{number}" if number else str(newer))).exists():
                number += 1
            path = self.directory / str(newer)
            log.warning(
                "the checkpoint %s is damaged (%s) and was moved to %s; going on from step %d",
                path,
                reason,
                target,
                step,
            )
            path.rename(target)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("damaged checkpoints set aside")
        with _quiet_orbax():
            self._manager.reload()

    def _check_same_model(self, step: int, abstract: TrainState) -> None:
        directory = self.directory / str(step)
        saved = _metadata(directory)
        for field in ("params", "ema_params"):
            there = _shapes(saved.get(field))
            here = _shapes(getattr(abstract, field))
            if there == here:
                continue
            names = sorted(set(there.items()) ^ set(here.items()))
            name = names[0][0]
            if all(changed.startswith(f"{held_durations.HELD}/") for changed, _ in names):
                raise UserError(
                    f"The checkpoint {directory} does not hold the durations that this run holds: "
                    "it was made by an earlier version, or without the stream of texts. Begin anew "
                    "in another model directory, with init_from the model that this one began with."
                )
            raise UserError(
                f"The checkpoint {directory} is of another model or setting: {field} {name} is "
                f"{there.get(name, 'absent')} there and {here.get(name, 'absent')} here; choose "
                "another model directory, or give this one as init_from."
            )


def restore_params(
    directory: epath.PathLike, which: Which = "ema", *, abstract_params: Any = None
) -> Any:
    """The parameters of a checkpoint.

    Args:
        directory: A model directory (its newest checkpoint counts), or one checkpoint in it.
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
    """Read from a checkpoint what fits a model by name and shape, and leave the rest.

    A model that holds durations (`modules.held_durations`) holds those of the checkpoint.

    Args:
        params: Tree of arrays, or of ``ShapeDtypeStruct`` with or without shardings.
        directory: A model directory (its newest checkpoint counts), or one checkpoint in it.
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
        reason = partial_init.reason_to_skip(
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
    copied = held_durations.to_copy(wanted, loaded)
    if copied:
        merged = held_durations.hold(merged)
    return merged, PartialRestoreReport(
        tuple(loaded), tuple(skipped), tuple(name for name in new if name not in copied), copied
    )


def saved_shapes(directory: epath.PathLike, which: Which = "ema") -> dict[str, tuple[int, ...]]:
    """The shape of each parameter of a checkpoint, by name.

    Args:
        directory: A model directory (its newest checkpoint counts), or one checkpoint in it.
        which: ``ema`` for the moving average, ``params`` for the values of the last step.

    Raises:
        UserError: The directory holds no checkpoint, or not these parameters.
    """
    saved = _saved_parameters(find_checkpoint(directory), which)
    return {parameter_trees.parameter_name(path): tuple(leaf.shape) for path, leaf in saved.items()}


def saved_record(step_directory: epath.PathLike) -> dict[str, Any]:
    """The JSON record of one checkpoint (see `Checkpoints.save`); empty where it has none.

    Raises:
        UserError: The checkpoint is damaged.
    """
    step_directory = epath.Path(step_directory)
    path = step_directory / RECORD
    if not path.is_dir():
        return {}
    with _naming_damage(step_directory), _quiet_orbax():
        with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer:
            return dict(checkpointer.restore(path))


def find_checkpoint(directory: epath.PathLike) -> epath.Path:
    """The directory of one checkpoint.

    Args:
        directory: A model directory, its ``checkpoints`` directory, or a checkpoint itself.

    Raises:
        UserError: There is no complete checkpoint.
    """
    path = epath.Path(directory).expanduser().absolute()
    if (path / STATE).is_dir():
        return path
    for parent in (path / SUBDIRECTORY, path):
        if parent.is_dir():
            steps = ocp.utils.checkpoint_steps(parent)
            if steps:
                return parent / str(max(steps))
    raise UserError(
        f"{directory} is not a checkpoint directory: give a model directory that holds "
        f"{SUBDIRECTORY}/<step>, or one such step."
    )


@contextlib.contextmanager
def _naming_damage(step_directory: epath.Path) -> Iterator[None]:
    """Turns what reading a part of a damaged checkpoint raises into one line that names it."""
    try:
        yield
    except (ValueError, TypeError, OSError, KeyError):
        check_whole(step_directory)
        raise


@contextlib.contextmanager
def _quiet_orbax() -> Iterator[None]:
    """Without the many lines at level INFO and WARNING that Orbax logs for each save."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _metadata(step_directory: epath.Path) -> Any:
    with _naming_damage(step_directory), _quiet_orbax():
        return ocp.PyTreeCheckpointHandler().metadata(step_directory / STATE).tree


def _flat(tree: Any) -> dict[tuple[str, ...], Any]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {parameter_trees.path_keys(path): leaf for path, leaf in leaves}


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {
        parameter_trees.parameter_name(path): tuple(leaf.shape)
        for path, leaf in _flat(tree).items()
    }


def _saved_parameters(step_directory: epath.Path, which: Which) -> dict[tuple[str, ...], Any]:
    """Paths and metadata of the saved parameters."""
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
    """Read some arrays; a target with a sharding is restored to it, any other as numpy array."""
    item: dict[str, Any] = {}
    restore_args: dict[str, Any] = {}
    for path, target in targets.items():
        sharding = getattr(target, "sharding", None)
        if sharding is None:
            arguments = ocp.RestoreArgs(
                restore_type=np.ndarray, dtype=None if target is None else target.dtype
            )
        else:
            arguments = ocp.ArrayRestoreArgs(
                restore_type=jax.Array,
                dtype=target.dtype,
                sharding=sharding,
                global_shape=target.shape,
            )
        _insert(item, path, 0)
        _insert(restore_args, path, arguments)
    field = _STATE_FIELDS[which]
    with _quiet_orbax(), ocp.PyTreeCheckpointer() as checkpointer:
        restored = checkpointer.restore(
            step_directory / STATE,
            args=ocp.args.PyTreeRestore(
                item={field: item}, restore_args={field: restore_args}, partial_restore=True
            ),
        )
    return _flat(restored[field])


def _insert(tree: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = value
