"""Layers whose parameters carry logical axis names, and constraints for activations.

Names are mapped to mesh axes by rules outside the model, so a module never knows the mesh.
Parameters use ``embed mlp heads kv vocab joint conv_in conv_out kernel codes``; activations use
``batch frames act_embed act_heads act_mlp act_vocab``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

DEFAULT_KERNEL_INIT = nn.initializers.xavier_uniform()
ZERO_INIT = nn.initializers.zeros_init()


def dense(
    features: int | Sequence[int],
    axes: tuple[str | None, ...],
    *,
    axis: int | tuple[int, ...] = -1,
    use_bias: bool = True,
    dtype: Any = jnp.float32,
    name: str | None = None,
    kernel_init: nn.initializers.Initializer = DEFAULT_KERNEL_INIT,
    bias_init: nn.initializers.Initializer = ZERO_INIT,
) -> nn.DenseGeneral:
    """A linear map over the last axes with named parameter axes.

    Args:
        features: Output size or sizes.
        axes: Logical names of the kernel's axes, inputs first.
        axis: The input axis or axes that are contracted.
        use_bias: Whether to add a bias.
        dtype: The type computed in; parameters stay float32.
        name: The parameter's name in the tree.
        kernel_init: The initialiser of the kernel.
        bias_init: The initialiser of the bias.

    Returns:
        An unbound ``nn.DenseGeneral``.
    """
    outputs = 1 if isinstance(features, int) else len(features)
    return nn.DenseGeneral(
        features,
        axis=axis,
        use_bias=use_bias,
        dtype=dtype,
        kernel_init=nn.with_logical_partitioning(kernel_init, axes),
        bias_init=nn.with_logical_partitioning(bias_init, axes[-outputs:]),
        name=name,
    )


def layer_norm(*, dtype: Any = jnp.float32, name: str | None = None) -> nn.LayerNorm:
    """Layer normalisation over the last axis; statistics in float32."""
    return nn.LayerNorm(
        epsilon=1e-5,
        dtype=dtype,
        scale_init=nn.with_logical_partitioning(nn.initializers.ones_init(), ("embed",)),
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros_init(), ("embed",)),
        name=name,
    )


def embedding(
    size: int, features: int, *, rows: str = "vocab", dtype: Any = jnp.float32, name: str | None = None
) -> nn.Embed:
    """A table of ``size`` vectors; ``rows`` names its first axis."""
    return nn.Embed(
        size,
        features,
        dtype=dtype,
        embedding_init=nn.with_logical_partitioning(
            nn.initializers.normal(features**-0.5), (rows, "embed")
        ),
        name=name,
    )


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Ask the partitioner to lay an activation out by logical axes (no effect without a mesh)."""
    return nn.with_logical_constraint(x, axes)
