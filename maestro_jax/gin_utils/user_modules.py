"""Modules of users, which register tasks and mixtures or define classes that gin files name."""

from __future__ import annotations

import importlib
import importlib.util
import os
import pathlib
import pkgutil
import sys
import traceback
from collections.abc import Sequence

from maestro_jax.data.tensorflow_import import import_tensorflow
from maestro_jax.errors import UserError, near_misses

_named: dict[str, None] = {}


def named_modules() -> tuple[str, ...]:
    """Returns the modules that the user has named with `--import`, in order."""
    return tuple(_named)


def find_modules_here() -> None:
    """Lets modules of the current directory be imported, after all that is installed."""
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)


def prepare_for_user_modules(names: Sequence[str]) -> None:
    """Imports TensorFlow silently before modules that may use it; see `import_tensorflow`.

    Args:
        names: Modules that are about to be imported; for those of this project nothing is done.
    """
    foreign = [name for name in names if name.split(".")[0] not in ("maestro_jax", "__gin__")]
    if foreign:
        # Only then: a directory must not provide optional packages that are not installed.
        find_modules_here()
    if any(name not in sys.modules for name in foreign) and importlib.util.find_spec("tensorflow"):
        import_tensorflow()


def import_user_modules(names: Sequence[str]) -> None:
    """Imports modules by name, for what they register.

    Args:
        names: Such as `my_lab.tasks`, installed or in the current directory.

    Raises:
        UserError: A module is not found, or fails while it is imported.
    """
    if not names:
        return
    for name in names:
        if not all(part.isidentifier() for part in name.split(".")):
            raise UserError(
                f"--import {name}: write a module as Python imports it, such as my_lab.tasks."
            )
    _named.update(dict.fromkeys(names))
    prepare_for_user_modules(names)
    for name in names:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            missing = str(error.name)
            if f"{name}.".startswith(f"{missing}."):
                raise UserError(f"--import {name}: {not_found(missing)}") from error
            raise UserError(f"--import {name}: {_failure(error)}") from error
        except Exception as error:
            raise UserError(f"--import {name}: {_failure(error)}") from error


def not_found(module: str) -> str:
    """Returns what to say of a module that does not exist, with the names that are nearest."""
    package, _, last = module.rpartition(".")
    if package:
        paths = getattr(importlib.import_module(package), "__path__", ())
        names = [found.name for found in pkgutil.iter_modules(paths)]
        return f"the package {package} has no module {last!r}.{near_misses(last, names)}"
    here = [found.name for found in pkgutil.iter_modules([os.getcwd()])]
    return (
        f"there is no module {module!r}; install it, set PYTHONPATH, or start maestro in the "
        f"directory that holds it.{near_misses(module, here)}"
    )


def _failure(error: Exception) -> str:
    """Returns what an import raised, and the line of the user's file that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "importlib" not in frame.filename]
    where = f"{pathlib.Path(own[-1].filename).name}:{own[-1].lineno}: " if own else ""
    if isinstance(error, SyntaxError) and error.filename:
        where = f"{pathlib.Path(error.filename).name}:{error.lineno}: "
        return f"{where}{error.msg}"
    text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    return f"{where}{text}"
