"""The table of all parameters that a run leaves in its model directory."""

from __future__ import annotations

import math
from typing import Any

import jax

from maestro_jax.training import parameter_trees


def parameter_overview(boxed_params: Any, shardings: Any) -> str:
    """A text table: name, shape, type, logical axes, mesh axes and size of each parameter.

    Args:
        boxed_params: Tree of abstract parameters in boxes with their logical axes.
        shardings: Tree of ``NamedSharding`` of the unboxed structure.

    Returns:
        Lines of text, with the number of all parameters at the end.
    """
    params = parameter_trees.unbox(boxed_params)
    boxes = jax.tree.leaves(boxed_params, is_leaf=parameter_trees.is_box)
    rows = [("name", "shape", "type", "logical axes", "mesh axes", "size")]
    total = 0
    for (name, leaf), box, sharding in zip(
        parameter_trees.named_leaves(params), boxes, jax.tree.leaves(shardings), strict=True
    ):
        size = math.prod(leaf.shape)
        total += size
        rows.append(
            (
                name,
                "x".join(map(str, leaf.shape)) or "scalar",
                str(leaf.dtype),
                ", ".join(map(str, getattr(box, "names", ()))),
                ", ".join(map(str, sharding.spec)),
                f"{size:,}",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join([*lines, f"{total:,} parameters in {len(rows) - 1} arrays"]) + "\n"
