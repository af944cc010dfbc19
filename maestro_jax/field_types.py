"""Checks the fields of configurations against their annotations.

Neither dataclasses nor gin check types: without this, `OPTIMIZER = "adam"`, or a class without its
parentheses, ends in a traceback far from its cause.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import numbers
import sys
import types
import typing
from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from maestro_jax.errors import UserError, near_misses

# Fields of every Flax module, which Flax itself sets.
_FLAX_FIELDS = ("parent", "name")
_NUMBERS: dict[Any, Any] = {int: numbers.Integral, float: numbers.Real}
# What a gin file can write without naming a class and calling it.
_LITERALS = (str, bool, numbers.Number, type)
_DTYPES = ("float32", "bfloat16", "float16")


def check_fields(config: Any) -> None:
    """Checks a dataclass, and the dataclasses that its fields hold, against the annotations.

    What an annotation does not settle passes: `Any`, protocols, callables, names that are imported
    for type checkers alone.

    Args:
        config: A dataclass or Flax module.

    Raises:
        UserError: A value is of another type than its field.
    """
    cls: type = type(config)
    annotations = _annotations(cls)
    of_flax = _FLAX_FIELDS if isinstance(config, nn.Module) else ()
    for field in dataclasses.fields(config):
        if field.name in of_flax or not hasattr(config, field.name):
            continue
        value = getattr(config, field.name)
        annotation = annotations.get(field.name, Any)
        name = f"{type(config).__name__}.{field.name}"
        if field.name == "dtype":  # JAX takes a type, an object or a string.
            if isinstance(value, str) and value not in _DTYPES:
                raise UserError(
                    f"{name} is {value!r}; choose one of {', '.join(_DTYPES)}."
                    f"{near_misses(value, _DTYPES)}"
                )
        elif not _fits(value, annotation):
            raise UserError(f"{name} is {_described(value, annotation)}")
        _check_nested(value)


def _check_nested(value: Any) -> None:
    """Checks the dataclasses in a value, which may be a mapping or a sequence of them."""
    if isinstance(value, Mapping):
        for each in value.values():
            _check_nested(each)
    elif isinstance(value, (tuple, list)):
        for each in value:
            _check_nested(each)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        check_fields(value)


@functools.cache
def _annotations(cls: type) -> dict[str, Any]:
    """Returns the annotations of a class's fields, evaluated; `Any` where that fails."""
    found: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        module = vars(sys.modules.get(base.__module__, types.ModuleType("")))
        for name, annotation in inspect.get_annotations(base).items():
            if isinstance(annotation, str):
                try:
                    annotation = eval(annotation, dict(module))
                except Exception:  # A name that only type checkers import, say.
                    annotation = Any
            found[name] = annotation
    return found


def _fits(value: Any, annotation: Any) -> bool:
    """Whether a value may be of the annotated type, as far as that can be told."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, each) for each in arguments)
    if origin is tuple:
        if not isinstance(value, (tuple, list)):  # gin hands over lists.
            return False
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return all(_fits(each, arguments[0]) for each in value)
        # A wrong length is for the class to refuse, which knows what the places mean.
        return all(map(_fits, value, arguments))
    expected = _NUMBERS.get(annotation, origin or annotation)
    if annotation in _NUMBERS and isinstance(value, bool):
        return False
    if annotation is Any or not isinstance(expected, type):
        return True
    if expected in (bool, str, types.NoneType, *_NUMBERS.values()):
        return isinstance(value, expected)
    # Any object may do the work of a class, but what gin writes as text or number does not.
    return not isinstance(value, _LITERALS) or _is_instance(value, expected)


def _is_instance(value: Any, cls: type) -> bool:
    """Whether a value is an instance of a class; not of a protocol."""
    return not getattr(cls, "_is_protocol", False) and isinstance(value, cls)


def _described(value: Any, annotation: Any) -> str:
    """Describes a wrong value, what is expected, and what to write in gin."""
    if isinstance(value, (tuple, list)):
        value = next((each for each in value if isinstance(each, type)), value)
    if isinstance(value, type):
        name = value.__name__
        return f"the class {name}, not an object of it; write @{name}() with parentheses in gin."
    if isinstance(value, str) and typing.get_origin(annotation) is tuple:
        return f"{value!r}; write a tuple: ({value!r},)."
    expected = _alternatives(annotation)
    remedy = ""
    if any(isinstance(each, type) and each.__module__ != "builtins" for each in expected):
        remedy = ", an object that gin writes as @module.Class()"
    return f"{value!r}; it must be {' or '.join(map(_type_name, expected))}{remedy}."


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    """Returns the members of a union, or the annotation by itself."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return typing.get_args(annotation)
    return (annotation,)


def _type_name(annotation: Any) -> str:
    """Returns a type in plain words."""
    words = {int: "a whole number", float: "a number", str: "a string", bool: "True or False"}
    if annotation in words:
        return words[annotation]
    if annotation is types.NoneType:
        return "None"
    if typing.get_origin(annotation) is tuple:
        members = typing.get_args(annotation)
        length = "" if members[-1] is Ellipsis else f"{len(members)} "
        plurals = {int: "whole numbers", float: "numbers", str: "strings"}
        same = set(members) - {Ellipsis}
        what = plurals.get(same.pop(), "values") if len(same) == 1 else "values"
        return f"a tuple of {length}{what}"
    name = getattr(annotation, "__name__", str(annotation))
    return f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"
