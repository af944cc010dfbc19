"""The table of all parameters that a run leaves in its model directory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax

from maestro_jax.training import parameter_trees


def parameters_by_module(params: Any) -> dict[str, int]:
    """The number of parameters of each part of a model, in the order of the tree.

    Args:
        params: Tree of parameters, unboxed, abstract or not; a part is a branch at its root.
    """
    parts = params.get("params", params)
    return {
        name: sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
        for name, tree in parts.items()
    }


def parameter_overview(boxed_params: Any, shardings: Any) -> str:
    """A text table: name, shape, type, logical axes, mesh axes and size of each parameter.

    Args:
        boxed_params: Tree of abstract parameters in boxes with their logical axes.
        shardings: Tree of ``NamedSharding`` of the unboxed structure.

    Returns:
        Lines of text, with the number of parameters by module and of all at the end.
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
    modules = [("module", "size", "share")] + [
        (name, f"{size:,}", f"{size / total:.1%}")
        for name, size in parameters_by_module(params).items()
    ]
    count = f"{total:,} parameters in {len(rows) - 1} arrays"
    return "\n".join([*_aligned(rows), "", *_aligned(modules), "", count]) + "\n"


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Lines in which the cells of a column begin in the same place."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
