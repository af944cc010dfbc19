"""Which activations of a layer are kept for its backward pass, and which are computed again.

The names are those that users of T5X and MaxText know. Of one Conformer block of width D with
feed-forward layers of 4 D, there are kept, by frame:

| policy | kept | computed again |
|---|---|---|
| `none` | everything | nothing |
| `dots` | results of matrix products, attention's of frames x frames among them | the rest |
| `dots_no_batch` (`minimal`) | those of products with kernels | attention, normalisation, gates |
| `named` | those products that are as wide as the block | and the 4 D of feed-forward layers |
| `offload` | the same as `named`, in the memory of the host | and the 4 D of feed-forward layers |
| `full` | what enters the block | everything |
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from maestro_jax.errors import near_misses

Policy = str | bool
"""A name of `POLICIES`; True is `full` and False is `none`."""

POLICIES = ("none", "full", "dots", "dots_no_batch", "minimal", "named", "offload")

# Layers (`Dense`, by their names in a module) whose outputs are as wide as the residual stream. The
# wide layers of feed-forward networks, `up`, are left out.
KEPT_LAYERS = ("query", "key", "value", "output", "gate", "down")


def check_policy(policy: Policy, where: str) -> None:
    """Refuses an unknown policy.

    Args:
        policy: The policy.
        where: The field that it was given for, as in `ConformerStack.remat`.

    Raises:
        ValueError: There is no such policy.
    """
    if not isinstance(policy, bool) and policy not in POLICIES:
        raise ValueError(
            f"{where} is {policy!r}; choose one of {', '.join(POLICIES)}."
            f"{near_misses(str(policy), POLICIES)}"
        )


def rematerialised(
    function: Callable[..., Any], policy: Policy, *, scanned: bool = False
) -> Callable[..., Any]:
    """Returns a function of a module and arrays that recomputes activations in the backward pass.

    Args:
        function: Its first argument is the module whose layers it calls; whatever has to stay a
            Python value (`deterministic`) is closed over.
        policy: What to keep.
        scanned: The function is the body of a scan, in which nothing else could merge the second
            computation with the first.

    Returns:
        The function itself with `none`.
    """
    name = {True: "full", False: "none"}[policy] if isinstance(policy, bool) else policy
    if name == "none":
        return function
    # Outside of a scan XLA would merge the recomputation with the first computation; `prevent_cse`
    # keeps them apart. Inside, nothing could merge them, and its barriers would only cost time.
    return nn.remat(function, policy=_saveable(name), prevent_cse=not scanned)


def scan_layers(
    function: Callable[[Any, jax.Array], jax.Array], module: nn.Module, x: jax.Array, times: int
) -> jax.Array:
    """Applies a layer to its own output, compiled once, with parameters of its own every time.

    Args:
        function: Of the module and an array, with an array of the same shape and type.
        module: The layer; its parameters get a leading axis of this name, `layers`.
        x: What the first one takes.
        times: Layers.
    """

    def body(module: nn.Module, x: jax.Array, _: None) -> tuple[jax.Array, None]:
        return function(module, x), None

    return nn.scan(
        body,
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        length=times,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )(module, x, None)[0]


@functools.cache
def _saveable(name: str) -> Callable[..., Any] | None:
    policies = jax.checkpoint_policies
    if name == "dots":
        return policies.dots_saveable
    if name in ("dots_no_batch", "minimal"):
        return policies.dots_with_no_batch_dims_saveable
    if name == "named":
        return policies.save_only_these_names(*KEPT_LAYERS)
    if name == "offload":
        return policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[],
            names_which_can_be_offloaded=list(KEPT_LAYERS),
            offload_src="device",
            offload_dst="pinned_host",
        )
    return None
