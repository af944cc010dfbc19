"""Functions as they are computed where products of float32 round their operands to bfloat16.

A TPU does so at JAX's default precision; a CPU does not, so that no test there would notice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def with_rounded_products(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with the operands rounded of every float32 product that does not refuse it."""

    def rounded(*args: Any) -> Any:
        program, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
        values = _evaluate(program.jaxpr, program.consts, jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(shapes), values)

    return rounded


def _evaluate(program: Any, constants: Any, arguments: Any) -> list[Any]:
    known = dict(zip(program.constvars, constants, strict=True))
    known |= dict(zip(program.invars, arguments, strict=True))

    def value(atom: Any) -> Any:
        return atom.val if hasattr(atom, "val") else known[atom]

    for equation in program.eqns:
        inputs = [value(atom) for atom in equation.invars]
        outputs = _apply(equation, inputs)
        known |= dict(zip(equation.outvars, outputs, strict=True))
    return [value(atom) for atom in program.outvars]


def _apply(equation: Any, inputs: list[Any]) -> list[Any]:
    name, params = equation.primitive.name, dict(equation.params)
    if name == "dot_general" and _rounds(params["precision"]):
        inputs = [
            x.astype(jnp.bfloat16).astype(x.dtype) if x.dtype == jnp.float32 else x for x in inputs
        ]
    inner = params.get("jaxpr", params.get("call_jaxpr"))
    if name == "scan":
        params["jaxpr"] = jax.make_jaxpr(lambda *args: _evaluate(inner.jaxpr, inner.consts, args))(
            *inner.in_avals
        )
    elif inner is not None:
        return _evaluate(inner.jaxpr, inner.consts, inputs)
    found = equation.primitive.bind(*inputs, **params)
    return list(found) if equation.primitive.multiple_results else [found]


def _rounds(precision: Any) -> bool:
    exact = jax.lax.Precision.HIGHEST
    return precision is None or any(each != exact for each in jax.tree.leaves(precision))
