"""Restores the parameters of a checkpoint into a model, as far as name and shape fit."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath
from flax import traverse_util

from maestro_jax.errors import UserError
from maestro_jax.modules.duration import freeze_durations, names_to_freeze
from maestro_jax.training import parameter_groups, parameter_trees
from maestro_jax.training.checkpoint_files import check_whole
from maestro_jax.training.saved_checkpoints import (
    Which,
    find_checkpoint,
    read_parameters,
    saved_parameters,
)

REPORT_FILE = "init_report.txt"
# The layers of a stack in one scanned array, or in an array per layer.
_SCANNED = re.compile(r"(.*/)?layers(/.*)")
_UNROLLED = re.compile(r"(.*/)?layer_\d+(/.*)")


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
        saved = saved_parameters(step_directory, which)
        values = read_parameters(step_directory, which, dict.fromkeys(saved))
        return traverse_util.unflatten_dict(values)
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
    saved = saved_parameters(step_directory, which)
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
    values = read_parameters(step_directory, which, targets)
    loaded = {parameter_trees.parameter_name(path): value for path, value in values.items()}
    merged = parameter_trees.map_named(lambda name, leaf: loaded.get(name, leaf), params)
    new = [name for name in wanted if name not in loaded]
    copied = names_to_freeze(wanted, loaded)
    if copied:
        merged = freeze_durations(merged)
    return merged, PartialRestoreReport(
        tuple(loaded), tuple(skipped), tuple(name for name in new if name not in copied), copied
    )


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
