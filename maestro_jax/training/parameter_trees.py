"""Trees of parameters: their names, and the boxes in which Linen keeps the logical axis names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from flax.core import meta


def is_box(node: Any) -> bool:
    """Whether a node of a tree is a Linen box (a parameter with the names of its axes)."""
    return isinstance(node, meta.AxisMetadata)


def unbox(tree: Any) -> Any:
    """The tree with every box replaced by its value.

    ``flax.linen.unbox`` adds a sharding constraint to each value when a mesh is set, which abstract
    values refuse; here the constraint is never wanted, because shardings are given to ``jax.jit``.
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
    """The keys on the way from the root of a tree to a leaf, as strings."""
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
    """A parameter's name, such as ``shared_encoder/block_0/kernel``.

    The collection name ``params`` at the root is left out, so that a name is the same for the tree
    of all variables and for the tree of parameters.
    """
    keys = path_keys(path)
    if len(keys) > 1 and keys[0] == "params":
        keys = keys[1:]
    return "/".join(keys)


def named_leaves(tree: Any) -> list[tuple[str, Any]]:
    """Names and values of all leaves of an unboxed tree, in the order of the tree."""
    return [
        (parameter_name(path), leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    ]


def map_named(function: Callable[[str, Any], Any], tree: Any) -> Any:
    """The tree with each leaf replaced by ``function(name, leaf)``."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: function(parameter_name(path), leaf), tree
    )
