"""Finds the hypotheses that evaluations have stored in model directories and result directories."""

from __future__ import annotations

from etils import epath

from maestro_jax.errors import UserError, near_misses
from maestro_jax.files import as_path

SUFFIX = ".hypotheses.jsonl"
"""What the name of a file of hypotheses has after that of the test set."""

_EARLIER_SUFFIX = ".predictions.jsonl"
_SHOWN = 8


def find_hypotheses(
    path: epath.PathLike, *, step: int | str | None = None, name: str | None = None
) -> dict[str, epath.Path]:
    """Finds the files of hypotheses of one evaluation.

    Args:
        path: A file of hypotheses; a result directory, which holds such files; or a model
            directory, whose folder `evaluation` holds result directories.
        step: Step of the checkpoint, where a model directory has results of several; `latest` is
            the largest.
        name: Test set, such as `maestro_voxpopuli_paired.test`; None for all.

    Returns:
        The files by the name of their test set, in alphabetical order; at least one.

    Raises:
        UserError: There are none, or it is not clear which evaluation is meant.
    """
    path = as_path(path)
    if path.is_file():
        return {_test_set(path.name) or path.name: path}
    if not path.is_dir():
        raise UserError(f"{path} does not exist; give a result directory or a file in it")
    directory = _result_directory(path, step)
    files = _files(directory)
    if name is not None:
        if name not in files:
            raise UserError(
                f"{directory} has no hypotheses of the test set {name!r}; it has "
                f"{', '.join(files)}.{near_misses(name, files)}"
            )
        files = {name: files[name]}
    return files


def result_directories(path: epath.PathLike) -> list[epath.Path]:
    """Returns the directories with hypotheses at or below a model directory, sorted by name.

    What earlier versions wrote is found only where there is nothing else.

    Args:
        path: A model directory, its folder `evaluation`, or a result directory.
    """
    path = as_path(path)
    places = [each for each in (path, path / "evaluation") if each.is_dir()]
    children = [child for place in places for child in sorted(place.iterdir()) if child.is_dir()]
    # The folder `evaluation` is a child of a model directory, too.
    found = list(dict.fromkeys(each for each in (*places, *children) if _files(each)))
    current = [each for each in found if _is_current(each)]
    return current or found


def step_of(directory: epath.Path) -> int | None:
    """Returns the step that the name of a result directory begins with; None without one."""
    step = directory.name.partition("-")[0]
    return int(step) if step.isdecimal() else None


def _result_directory(path: epath.Path, step: int | str | None) -> epath.Path:
    found = result_directories(path)
    if not found:
        raise UserError(
            f"{path} has no hypotheses (*{SUFFIX}); evaluate first: maestro eval --model_dir DIR"
        )
    if _files(path):
        return path
    steps = {directory: step_of(directory) for directory in found}
    known = sorted({number for number in steps.values() if number is not None})
    if step == "latest" and known:
        step = known[-1]
    chosen = [each for each in found if step is None or steps[each] == step]
    if not chosen:
        raise UserError(
            f"{path} has no results of step {step}; it has {', '.join(map(str, known)) or 'none'}"
        )
    if len(chosen) > 1:
        names = ", ".join(each.name for each in chosen[:_SHOWN])
        more = ", ..." if len(chosen) > _SHOWN else ""
        raise UserError(
            f"{path} has {len(chosen)} results ({names}{more}); name one as {chosen[0]}"
            + (", or give --step" if step is None and len(known) > 1 else "")
        )
    return chosen[0]


def _files(directory: epath.Path) -> dict[str, epath.Path]:
    files: dict[str, epath.Path] = {}
    for path in sorted(directory.iterdir()):
        test_set = _test_set(path.name)
        # Where there are files of both names, the earlier one is of an earlier version.
        if test_set and (test_set not in files or path.name.endswith(SUFFIX)):
            files[test_set] = path
    return files


def _is_current(directory: epath.Path) -> bool:
    """Returns whether a directory has hypotheses of this version."""
    return any(path.name.endswith(SUFFIX) for path in _files(directory).values())


def _test_set(file_name: str) -> str:
    """Returns the test set of a file of hypotheses; empty for another file."""
    for suffix in (SUFFIX, _EARLIER_SUFFIX):
        if file_name.endswith(suffix) and not file_name.startswith("."):
            return file_name.removesuffix(suffix)
    return ""
