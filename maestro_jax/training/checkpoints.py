"""Checkpoints: everything that this project asks of Orbax, in one place.

A model directory holds ``checkpoints/<step>/state`` (the training state) and
``checkpoints/<step>/data`` (a small JSON record, `records.TrainingRecord`). The files of a
checkpoint are verified before it is restored (`checkpoint_files`).

The newest checkpoints are kept, and the best one of a run with validation; the file
``best_checkpoint.json`` names it. Where a checkpoint is asked for, ``MODEL_DIR`` means the newest
one, ``MODEL_DIR/best`` the best one, and ``MODEL_DIR/checkpoints/<step>`` that of one step.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers

from maestro_jax.errors import UserError
from maestro_jax.files import absolute_path, models_below, move_tree
from maestro_jax.modules.duration import FROZEN_DURATIONS, freeze_durations, names_to_freeze
from maestro_jax.training import checkpoint_files, parameter_groups, parameter_trees
from maestro_jax.training.checkpoint_files import RECORD, STATE, check_whole
from maestro_jax.training.state import TrainState

if TYPE_CHECKING:
    from maestro_jax.training.run import TrainRun

log = logging.getLogger(__name__)

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
    in the background.

    Args:
        model_dir: The model directory; checkpoints lie in ``checkpoints/`` within.
        keep: Number of newest checkpoints to keep.

    Attributes:
        directory: The directory of the checkpoints.
        best: The best checkpoint, which is kept besides the newest ones; None for none.
    """

    def __init__(self, model_dir: epath.PathLike, *, keep: int = 2) -> None:
        """Opens the directory, and creates it if necessary."""
        self.directory = absolute_path(model_dir) / SUBDIRECTORY
        self.best: BestCheckpoint | None = None
        self._saving = -1
        self._digesting = concurrent.futures.ThreadPoolExecutor(1)
        with _quiet_orbax():
            self._manager = ocp.CheckpointManager(
                self.directory,
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=checkpoint_managers.AnyPreservationPolicy(
                        [checkpoint_managers.LatestN(keep), _KeepBest(self)]
                    ),
                    cleanup_tmp_directories=True,
                    async_options=ocp.options.AsyncOptions(
                        post_finalization_callback=self._list_files
                    ),
                ),
                item_names=(STATE, RECORD),
            )

    def latest_step(self) -> int | None:
        """Returns the step of the newest checkpoint, or None."""
        return self._manager.latest_step()

    def all_steps(self) -> list[int]:
        """Returns the steps of all checkpoints, in ascending order."""
        return sorted(self._manager.all_steps())

    def save(self, state: TrainState | Mapping[str, Any], data: Mapping[str, Any]) -> None:
        """Begins to save a state; does nothing if its step has been saved already.

        Args:
            state: The state, or some of its fields by name, whose arrays may be donated as soon as
                this returns.
            data: JSON values, with the key ``step``.
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
                force=True,
            )

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
            path.write_text(json.dumps(dataclasses.asdict(self.best), indent=2) + "\n")

    def restore_latest(self, abstract: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
        """Restores the newest undamaged checkpoint in the given layout.

        Training is a function of the step, so resuming from an older checkpoint gives the same
        result, only later. Newer checkpoints, which are damaged, are moved to
        ``damaged_checkpoints/`` beside the directory, and a warning names each.

        Args:
            abstract: ``ShapeDtypeStruct`` with shardings, which may be of another mesh than the
                one that saved.

        Returns:
            State and JSON record; None if there is no checkpoint.

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
        return self.restore(step, abstract)

    def restore(self, step: int, abstract: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """Restores the checkpoint of a step; the arguments and the result are those of above."""
        with _quiet_orbax():
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(abstract), data=ocp.args.JsonRestore()
                ),
            )
        return restored["state"], dict(restored["data"])

    def remove_after(self, step: int) -> None:
        """Removes the checkpoints of later steps, which a run that has rolled back does again."""
        with _quiet_orbax():
            self._manager.wait_until_finished()
            for later in self.all_steps():
                if later > step:
                    self._manager.delete(later)

    def wait(self) -> None:
        """Waits until everything is written."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits until everything is written, and releases the directory."""
        self._manager.wait_until_finished()
        self._add_digests()
        self._digesting.shutdown()
        self._manager.close()

    def _list_files(self) -> None:
        """Lists the files of a complete checkpoint; Orbax calls it in the background."""
        if jax.process_index() != 0:
            return
        name = str(self._saving)
        for path in self.directory.iterdir():  # Until it is complete, its name has an ending.
            if path.name.split(".")[0] == name and (path / STATE).is_dir():
                checkpoint_files.write_list(path, digests=False)
        if self.best is not None and self.best.step == self._saving:
            self.write_best()

    def _add_digests(self) -> None:
        """Begins to add digests, which take time, to the file list of the complete checkpoint."""
        step, self._saving = self._saving, -1
        if step < 0 or jax.process_index() != 0:
            return

        def add() -> None:
            # It may have been removed meanwhile, for a newer one; the list of sizes serves as well.
            with contextlib.suppress(OSError):
                checkpoint_files.write_list(self.directory / str(step), digests=True)

        self._digesting.submit(add)

    def _newest_whole(self, steps: Sequence[int]) -> tuple[int, dict[int, str]]:
        """Finds the step of the newest undamaged checkpoint, the same on every process.

        Returns:
            The step, and what is wrong with each newer one (known to the first process alone).
        """
        chosen: int | None = None
        damaged: dict[int, str] = {}
        if jax.process_index() == 0:
            chosen, damaged = checkpoint_files.newest_whole(self.directory, steps)
        if jax.process_count() > 1:
            # The first process decides for all: others may see other files of a shared directory,
            # and must not restore another step.
            sent = np.int32(-1 if chosen is None else chosen)
            step = int(multihost_utils.broadcast_one_to_all(sent))
            chosen = None if step < 0 else step
        if chosen is None:
            reason = damaged.get(steps[-1], "see the log of the first process")
            raise UserError(
                f"No checkpoint is whole: {self.directory / str(steps[-1])} ({reason})"
                + (f", nor {len(steps) - 1} before it" if len(steps) > 1 else "")
                + "; copy an undamaged one there, or choose another model directory."
            )
        return chosen, damaged

    def _set_aside(self, damaged: Mapping[int, str], step: int) -> None:
        """Moves damaged checkpoints away, so that their steps can be saved again."""
        for newer, reason in damaged.items():
            place = self.directory.parent / SET_ASIDE
            place.mkdir(exist_ok=True)
            number = 0
            while (target := place / (f"{newer}.{number}" if number else str(newer))).exists():
                number += 1
            path = self.directory / str(newer)
            log.warning(
                "the checkpoint %s is damaged (%s) and was moved to %s; continuing from step %d",
                path,
                reason,
                target,
                step,
            )
            move_tree(path, target)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("damaged checkpoints set aside")
        with _quiet_orbax():
            self._manager.reload()

    def _check_same_model(self, step: int, abstract: TrainState) -> None:
        directory = self.directory / str(step)
        saved = _metadata(directory)
        if saved_record(directory).get("averaged_steps"):
            raise UserError(
                f"{directory} is an average of checkpoints, from which training cannot continue: "
                "train in another model directory, with INIT_FROM for this one."
            )
        for field in ("params", "ema_params"):
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
            raise UserError(
                f"The checkpoint {directory} is of another model or setting: {field} {name} is "
                f"{in_checkpoint.get(name, 'absent')} there and {in_run.get(name, 'absent')} here; "
                "choose another model directory, or give this one as init_from."
            )


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
    with _naming_damage(step_directory), _quiet_orbax():
        with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer:
            return dict(checkpointer.restore(path))


def find_checkpoint(directory: epath.PathLike) -> epath.Path:
    """Finds the directory of one checkpoint.

    Args:
        directory: A model directory or its ``checkpoints`` directory, for the newest checkpoint;
            one of the two with ``/best`` or ``/latest`` after it; or a checkpoint itself.

    Raises:
        UserError: There is no complete checkpoint, or none that is known as the best.
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
                return parent / str(max(steps))
    if path.parent.name == SUBDIRECTORY and path.parent.is_dir():
        if steps := sorted(ocp.utils.checkpoint_steps(path.parent)):
            raise UserError(
                f"{path.parent.parent} has no checkpoint {path.name}; it has those of steps "
                f"{', '.join(map(str, steps))}."
            )
    raise UserError(
        f"{directory} is not a checkpoint directory: give a model directory that holds "
        f"{SUBDIRECTORY}/<step>, or one such step{models_below(path)}."
    )


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
        check_whole(step_directory)
        raise


@contextlib.contextmanager
def _quiet_orbax() -> Iterator[None]:
    """Silences the many lines at level INFO and WARNING that Orbax logs for each save."""
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
