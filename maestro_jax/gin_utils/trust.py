"""What a gin file may import and name, whoever wrote it.

Gin imports the modules that a file asks for and calls the functions that it refers to: by itself, a
file with ``import os`` and ``@os.system()`` runs a program. Model directories and gin files are
passed on, so both are checked before gin reads a file and before anything is imported:

- A file imports modules of maestro_jax, and those that the user has named with ``--import`` or in
  `ALLOWED_IMPORTS_VARIABLE`, with what lies below them.
- Of maestro_jax it names configurations: dataclasses (Linen modules are dataclasses), callbacks and
  trackers of `CONFIGURABLE_MODULES`, and `CONFIGURABLE_FUNCTIONS`. Their constructors touch neither
  files nor programs. Of other modules it names the classes and functions that these define, not
  what they import.

What gin reads is the text that was checked (`gin_source.Source.texts`).
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import os
import sys
from collections.abc import Collection, Sequence
from typing import Any

from maestro_jax.errors import UserError
from maestro_jax.gin_utils.gin_source import Source
from maestro_jax.gin_utils.user_modules import named_modules

ALLOWED_IMPORTS_VARIABLE = "MAESTRO_ALLOW_IMPORT"
"""Environment variable with further modules that gin files may import, separated by commas."""

CONFIGURABLE_MODULES = (
    "maestro_jax.augmentation_config",
    "maestro_jax.batches",
    "maestro_jax.experiments.study",
    "maestro_jax.inference.search_config",
    "maestro_jax.layers",
    "maestro_jax.modules",
    "maestro_jax.objectives",
    "maestro_jax.speech_synthesis",
    "maestro_jax.training",
)
"""Modules and packages whose configurations gin files may name."""

CONFIGURABLE_FUNCTIONS = ("maestro_jax.objectives.curriculum.paper_curriculum",)
"""Functions that gin files may name."""


def check_imports(source: Source, imports: Sequence[str] = ()) -> None:
    """Refuses files that import what nobody has named; imports nothing itself.

    Args:
        source: The files.
        imports: Modules that the caller allows, besides those of ``--import`` and the environment.

    Raises:
        UserError: With file and line, the module, and the option that allows it.
    """
    allowed = _allowed(imports)
    for module, where in source.modules.items():
        if not _is_within(module, ("maestro_jax", "__gin__", *allowed)):
            raise UserError(
                f"{where}: imports {module}, which is not of maestro_jax and may run anything; if "
                f"you trust it, give --import {module}, or set {ALLOWED_IMPORTS_VARIABLE}={module}."
            )


def check_names(source: Source, imports: Sequence[str] = ()) -> None:
    """Refuses files that name what is no configuration; imports the modules of the files.

    Args:
        source: The files, which `check_imports` has accepted.
        imports: As there.

    Raises:
        UserError: With file and line, and the name.
    """
    allowed = _allowed(imports)
    for module, attributes in source.named:
        try:
            importlib.import_module(module)
        except Exception:  # Gin will say so, with what else it knows.
            continue
        found: Any = sys.modules[module]
        for attribute in attributes:
            found = getattr(found, attribute, None)
        # What does not exist is for gin to refuse, with the names that are nearest.
        if found is not None and not may_be_named(found, allowed):
            name = ".".join((module, *attributes))
            raise UserError(
                f"{source.named[module, attributes]}: names {name}, which gin files may not: they "
                "name configurations of maestro_jax (dataclasses, Linen modules, callbacks, "
                "trackers), and what modules given with --import define."
            )


def may_be_named(found: Any, allowed: Collection[str] = ()) -> bool:
    """Returns whether gin files may name a class or a function.

    Args:
        found: What a name refers to.
        allowed: Modules of users.
    """
    # Imported here: these import JAX, which reading gin files does without.
    from maestro_jax.training.callbacks import Callback
    from maestro_jax.training.trackers import Tracker

    is_class = inspect.isclass(found)
    if not is_class and not inspect.isfunction(found):
        return False
    if _is_within(found.__module__, allowed):
        return True
    if not is_class:
        return f"{found.__module__}.{found.__qualname__}" in CONFIGURABLE_FUNCTIONS
    return _is_within(found.__module__, CONFIGURABLE_MODULES) and (
        dataclasses.is_dataclass(found) or issubclass(found, (Callback, Tracker))
    )


def _allowed(imports: Sequence[str]) -> tuple[str, ...]:
    """Returns the modules of users that files may import."""
    text = os.environ.get(ALLOWED_IMPORTS_VARIABLE, "")
    variable = [name.strip() for name in text.split(",") if name.strip()]
    return (*imports, *named_modules(), *variable)


def _is_within(module: str, packages: Collection[str]) -> bool:
    return any(f"{module}.".startswith(f"{package}.") for package in packages)
