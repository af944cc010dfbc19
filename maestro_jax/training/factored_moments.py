"""Adafactor's second moments, laid out over a mesh like the parameters that they belong to.

Source: Shazeer and Stern 2018 (arXiv 1804.04235), algorithm 4, as `optax.scale_by_factored_rms`
implements it. Where a parameter has two large axes, its second moments are kept as means over one
of them and as means over the other; an array of means has the logical axes that are left.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import optax

from maestro_jax.training import parameter_trees


def scale_by_factored_rms(
    *, decay_rate: float, smallest: int, eps: float
) -> optax.GradientTransformation:
    """`optax.scale_by_factored_rms`, whose state keeps the boxes of boxed parameters.

    Args:
        decay_rate: Exponent of the decay: after t updates it is `1 - t ** -decay_rate`.
        smallest: An axis below this size is not averaged over; a parameter with fewer than two
            others has a moment for each of its values.
        eps: Added to the square of the gradient.
    """
    plain = optax.scale_by_factored_rms(
        decay_rate=decay_rate, min_dim_size_to_factor=smallest, epsilon=eps
    )

    def init(params: Any) -> Any:
        state = plain.init(parameter_trees.unbox(params))

        def boxed(field: str) -> Any:
            return jax.tree.map(
                lambda param, value: _in_a_box(param, value, field, smallest),
                params,
                getattr(state, field),
                is_leaf=parameter_trees.is_box,
            )

        return state._replace(**{field: boxed(field) for field in ("v_row", "v_col", "v")})

    return optax.GradientTransformation(init, plain.update)


def factored_axes(shape: tuple[int, ...], smallest: int) -> tuple[int, int] | None:
    """The axes that `v_col` and `v_row` are means over, the largest last; None: neither is.

    Args:
        shape: Of the parameter.
        smallest: The size that both must have.
    """
    if len(shape) < 2:
        return None
    *_, second, largest = (int(axis) for axis in np.argsort(shape))
    return None if shape[second] < smallest else (second, largest)


def _in_a_box(param: Any, value: jax.Array, field: str, smallest: int) -> Any:
    """The statistics of a parameter, in a box like its own where they have logical axes."""
    names = tuple(getattr(param, "names", ())) if parameter_trees.is_box(param) else ()
    if not names:
        return value
    shape = parameter_trees.unbox(param).shape
    axes = factored_axes(shape, smallest)
    if (axes is None) != (field == "v"):
        # What stands in the place of statistics that are not kept.
        return value
    if axes is not None:
        gone = axes[1] if field == "v_row" else axes[0]
        names = names[:gone] + names[gone + 1 :]
    return param.replace(value=value, names=names)
