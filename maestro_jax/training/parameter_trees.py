"""Trees of parameters: names, counts, and the boxes in which Linen keeps logical axis names."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
from flax.core import meta

from maestro_jax.tables import table


def is_box(node: Any) -> bool:
    """Returns whether a node of a tree is a Linen box (a parameter with the names of its axes)."""
    return isinstance(node, meta.AxisMetadata)


def unbox(tree: Any) -> Any:
    """Replaces every box of a tree by its value.

    ``flax.linen.unbox`` adds a sharding constraint to each value when a mesh is set, which abstract
    values refuse. No constraint is wanted here, because shardings are given to ``jax.jit``.
    """
    return jax.tree.map(
        lambda node: (
            node.unbox(apply_constraint=False)
            if isinstance(node, meta.Partitioned)
            else (node.unbox() if is_box(node) else node)
        ),
        tree,
        is_leaf=is_box,
    )


def path_keys(path: tuple[Any, ...]) -> tuple[str, ...]:
    """Returns the keys on the way from the root of a tree to a leaf, as strings."""
    keys = []
    for entry in path:
        for attribute in ("key", "name", "idx"):
            if hasattr(entry, attribute):
                keys.append(str(getattr(entry, attribute)))
                break
        else:
            keys.append(str(entry))
    return tuple(keys)


def parameter_name(path: tuple[Any, ...] | tuple[str, ...]) -> str:
    """Returns the name of a parameter, such as ``shared_encoder/block_0/kernel``.

    The collection name ``params`` at the root is left out, so that a name is the same for the tree
    of all variables and for the tree of parameters.
    """
    keys = path_keys(path)
    if len(keys) > 1 and keys[0] == "params":
        keys = keys[1:]
    return "/".join(keys)


def named_leaves(tree: Any) -> list[tuple[str, Any]]:
    """Lists the names and values of all leaves of an unboxed tree, in the order of the tree."""
    return [
        (parameter_name(path), leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    ]


def map_named(function: Callable[[str, Any], Any], tree: Any) -> Any:
    """Replaces each leaf of a tree by ``function(name, leaf)``."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: function(parameter_name(path), leaf), tree
    )


def parameters_by_module(params: Any) -> dict[str, int]:
    """Counts the parameters of each top-level module of a model, in the order of the tree.

    Args:
        params: Tree of parameters, unboxed, abstract or not.
    """
    modules = params.get("params", params)
    return {
        name: sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
        for name, tree in modules.items()
    }


def parameter_overview(boxed_params: Any, shardings: Any) -> str:
    """Formats the table of parameters that training leaves in ``parameters.txt``.

    ``clu.parameter_overview`` knows neither logical axes nor mesh axes.

    Args:
        boxed_params: Tree of abstract parameters in boxes with their logical axes.
        shardings: Tree of ``NamedSharding`` of the unboxed structure.

    Returns:
        A row per parameter (name, shape, dtype, logical axes, mesh axes, size), a row per module
        with its share, and the total.
    """
    leaves = named_leaves(unbox(boxed_params))
    boxes = jax.tree.leaves(boxed_params, is_leaf=is_box)
    rows = [
        {
            "name": name,
            "shape": "x".join(map(str, leaf.shape)) or "scalar",
            "dtype": str(leaf.dtype),
            "logical axes": ", ".join(map(str, getattr(box, "names", ()))),
            "mesh axes": ", ".join(map(str, sharding.spec)),
            "size": f"{math.prod(leaf.shape):,}",
        }
        for (name, leaf), box, sharding in zip(
            leaves, boxes, jax.tree.leaves(shardings), strict=True
        )
    ]
    total = sum(math.prod(leaf.shape) for _, leaf in leaves)
    modules = [
        {"module": name, "size": f"{size:,}", "share": f"{size / total:.1%}"}
        for name, size in parameters_by_module(unbox(boxed_params)).items()
    ]
    count = f"{total:,} parameters in {len(rows)} arrays"
    return "\n\n".join([table(rows), table(modules), count]) + "\n"
