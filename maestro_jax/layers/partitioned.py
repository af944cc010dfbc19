"""Layers whose parameters carry logical axis names, and constraints for activations.

Names are mapped to mesh axes by rules outside the model, so a module never knows the mesh.
Parameters use ``embed mlp heads kv vocab joint conv_in conv_out kernel codes``; activations use
``batch frames act_embed act_heads act_mlp act_vocab``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

DEFAULT_KERNEL_INIT = nn.initializers.xavier_uniform()
ZERO_INIT = nn.initializers.zeros_init()


def parameter(
    module: nn.Module,
    name: str,
    init: Callable[..., jax.Array],
    axes: tuple[str | None, ...],
    shape: tuple[int, ...],
) -> jax.Array:
    """Returns a float32 parameter of a module, which initialisation creates.

    Args:
        module: The module that asks for it.
        name: Name of the parameter in the module.
        init: Function of key, shape and dtype that returns the values.
        axes: The logical name of each axis.
        shape: Shape of the parameter.
    """
    boxed = nn.with_logical_partitioning(init, axes)
    # Flax says that the box comes back; a module is handed what is in it.
    return cast(jax.Array, module.param(name, boxed, shape, jnp.float32))


class Dense(nn.Module):
    """A linear map over the last axes, with named parameter axes.

    Flax's `DenseGeneral` initialises a flat kernel and reshapes it, which its own logical axis
    names refuse under a mesh.

    Attributes:
        features: Output size, or sizes.
        axes: Logical names of the kernel's axes, inputs first.
        contracted: Number of input axes, from the last, that are contracted.
        use_bias: Whether to add a bias.
        dtype: Computation dtype; parameters stay float32.
        precision: Precision of the product (see `maestro_jax.precision`); None for JAX's default.
        kernel_init: The initialiser of the kernel, given it as a matrix.
        bias_init: The initialiser of the bias.
    """

    features: int | tuple[int, ...]
    axes: tuple[str | None, ...]
    contracted: int = 1
    use_bias: bool = True
    dtype: Any = jnp.float32
    precision: jax.lax.Precision | None = None
    kernel_init: nn.initializers.Initializer = DEFAULT_KERNEL_INIT
    bias_init: nn.initializers.Initializer = ZERO_INIT

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[..., inputs]` to `[..., features]`."""
        outputs = (self.features,) if isinstance(self.features, int) else tuple(self.features)
        inputs = x.shape[x.ndim - self.contracted :]

        def as_matrix(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
            # Fan-in and fan-out are those of the flat matrix, however many axes the kernel has.
            flat = (math.prod(inputs), math.prod(outputs))
            return self.kernel_init(key, flat, dtype).reshape(shape)

        kernel = parameter(self, "kernel", as_matrix, self.axes, (*inputs, *outputs))
        # As a product of matrices: XLA's gradient of one with more axes is slow on CPU.
        rows = x.astype(self.dtype).reshape(-1, math.prod(inputs))
        matrix = kernel.astype(self.dtype).reshape(math.prod(inputs), math.prod(outputs))
        y = jnp.matmul(rows, matrix, precision=self.precision)
        y = y.reshape(*x.shape[: x.ndim - self.contracted], *outputs)
        if self.use_bias:
            bias = parameter(self, "bias", self.bias_init, self.axes[self.contracted :], outputs)
            y = y + bias.astype(self.dtype)
        # The name by which a rematerialisation policy may keep it.
        return checkpoint_name(y, self.name or "dense")


def embedding(
    size: int,
    features: int,
    *,
    rows: str | None = "vocab",
    dtype: Any = jnp.float32,
    name: str | None = None,
) -> nn.Embed:
    """Returns a table of ``size`` vectors, whose first axis is named ``rows``."""
    return nn.Embed(
        size,
        features,
        dtype=dtype,
        embedding_init=nn.with_logical_partitioning(
            nn.initializers.normal(features**-0.5), (rows, "embed")
        ),
        name=name,
    )


def mesh_axes(axis: str) -> dict[str, int]:
    """Returns the mesh axes, with sizes, over which a logical axis is split in the current mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    spec = nn.logical_to_mesh_axes((axis,)) if not mesh.empty else None
    if not spec or spec[0] is None or not nn.get_logical_axis_rules():
        return {}
    names = (spec[0],) if isinstance(spec[0], str) else spec[0]
    return {name: mesh.shape[name] for name in names}


def shards(axis: str) -> int:
    """Returns the number of devices over which a logical axis is split in the current mesh."""
    return math.prod(mesh_axes(axis).values())


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Asks the partitioner to split an activation by logical axes; no effect without a mesh."""
    return nn.with_logical_constraint(x, axes)
