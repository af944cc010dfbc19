"""Values of a wrong type in a configuration are refused in one line, before anything uses them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, Protocol

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from maestro_jax.errors import UserError
from maestro_jax.field_types import check_fields


class Source(Protocol):
    def draw(self) -> int: ...


@dataclasses.dataclass(frozen=True)
class Fixed:
    frames: int = 4

    def draw(self) -> int:
        return self.frames


@dataclasses.dataclass
class Schedule:
    points: tuple[tuple[int, float], ...] = ((0, 1.0),)


class Block(nn.Module):
    hidden: int = 4
    dtype: Any = jnp.float32


class Model(nn.Module):
    block: nn.Module | None = None
    layers: int = 2


@dataclasses.dataclass
class Config:
    weight: float | Schedule = 1.0
    source: Source = Fixed()
    model: Model | None = None
    mesh: tuple[int, int] = (1, 1)
    patterns: tuple[str, ...] = ()
    mode: Literal["min", "max"] = "min"
    name: str | None = None
    frozen: bool = False
    parts: Mapping[str, Fixed] = dataclasses.field(default_factory=dict)
    anything: Any = None
    dtype: np.dtype = np.dtype("float32")
    later: NotImported = None  # type: ignore[name-defined]  # noqa: F821


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"dtype": "bfloat16"},
        {"dtype": jnp.float32},
        {"weight": 1, "name": "x", "anything": "x", "later": "x"},
        {"weight": np.float32(0.5), "mesh": [1, np.int32(2)], "patterns": ["a"]},
        {"weight": Schedule(points=((0, 0), (5, 1.0))), "mode": "wrong, but for the class to say"},
        {"model": Model(block=Block(dtype="bfloat16"))},
        {"parts": {"a": Fixed()}, "frozen": True},
    ],
)
def test_accepted(values: dict[str, Any]) -> None:
    check_fields(Config(**values))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"weight": "heavy"},
            "Config.weight is 'heavy'; it must be a number or a Schedule, an obj",
        ),
        ({"weight": True}, "Config.weight is True; it must be a number or"),
        (
            {"source": "fixed"},
            r"Config.source is 'fixed'; it must be a Source, .* @module.Class\(\)",
        ),
        ({"source": Fixed}, r"Config.source is the class Fixed.*write @Fixed\(\) with parenth"),
        ({"model": "tiny"}, "Config.model is 'tiny'; it must be a Model or None"),
        ({"mesh": 2}, "Config.mesh is 2; it must be a tuple of 2 whole numbers."),
        ({"mesh": (1, "two")}, r"Config.mesh is \(1, 'two'\)"),
        ({"patterns": "a.*"}, r"write a tuple: \('a\.\*',\)"),
        ({"name": 3}, "Config.name is 3; it must be a string or None."),
        ({"frozen": "no"}, "Config.frozen is 'no'; it must be True or False."),
        ({"parts": {"a": Fixed(frames=1.5)}}, "Fixed.frames is 1.5; it must be a whole number."),
        ({"model": Model(layers="two")}, "Model.layers is 'two'; it must be a whole number."),
        ({"model": Model(block=Block)}, r"Model.block is the class Block.* @Block\(\)"),
        ({"model": Model(block=Block(hidden=None))}, "Block.hidden is None; it must be a whole"),
        ({"model": Model(block=Block(dtype="fp16"))}, "dtype is 'fp16'.* Did you mean 'float16'"),
    ],
)
def test_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_fields(Config(**values))
