"""Multi-head self-attention over padded sequences."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from maestro_jax.errors import UserError
from maestro_jax.layers.dot_product_attention import (
    BLOCK,
    LARGE_NEGATIVE,
    blocked_attention,
    cudnn_attention,
    cudnn_supports,
    local_attention,
    local_is_cheaper,
    pallas_attention,
    whole_attention,
)
from maestro_jax.layers.partitioned import Dense, constrain
from maestro_jax.layers.positions import rotate

__all__ = ["IMPLEMENTATIONS", "LARGE_NEGATIVE", "SelfAttention"]

IMPLEMENTATIONS = ("auto", "whole", "blocked", "local", "cudnn", "pallas")
_WHOLE_SEQUENCE_KERNELS = ("cudnn", "pallas")


def check_heads(features: int, heads: int, owner: str) -> None:
    """Refuses a number of heads that does not divide the features.

    Args:
        features: Model size.
        heads: Number of heads.
        owner: The class whose field `heads` is.

    Raises:
        UserError: It does not, so that a few features would be lost without a word.
    """
    if heads < 1 or features % heads:
        divisors = [number for number in range(1, features + 1) if features % number == 0]
        nearest = sorted(divisors, key=lambda number: abs(number - heads))[:3]
        raise UserError(
            f"{owner}.heads is {heads}, which does not divide the {features} features; choose one "
            f"of {', '.join(map(str, sorted(nearest)))}."
        )


class SelfAttention(nn.Module):
    """Self-attention over a whole sequence or a band of it; softmax in float32.

    Attributes:
        heads: Number of heads; divides the model size.
        dropout: Rate on the attention weights.
        rotary: Encode positions by rotating queries and keys.
        context: How many frames to each side a frame attends to; None for all.
        implementation: How it is computed; the numbers are the same.

            - `whole`: all weights at once; memory grows with the square of the frames.
            - `blocked`: the weights of a block of queries at a time, which the gradient computes
              again; memory grows with the frames. The faster one too on CPU, above a few hundred
              frames.
            - `local`: along the band that `context` gives, in time and memory proportional to
              frames times context.
            - `cudnn`: cuDNN's flash attention, through `jax.nn.dot_product_attention`: on GPUs, in
              bfloat16 or float16. The valid frames must come first.
            - `pallas`: the flash attention for TPUs that comes with JAX.
            - `auto`: `local` where a band is short for the sequence; on GPUs `cudnn` where it can
              be; else `blocked` for sequences of two blocks or more, and `whole`.

            The kernels have no dropout on the weights: where it is at work, in training with a rate
            above 0, `blocked` takes the place of `cudnn` and `pallas`.
        dtype: Computation dtype.
    """

    heads: int
    dropout: float = 0.0
    rotary: bool = False
    context: int | None = None
    implementation: str = "auto"
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        """Refuses settings that mean nothing before anything is built."""
        if self.context is not None and self.context < 0:
            raise ValueError(
                f"SelfAttention.context is {self.context}; give a number of frames, or None for a "
                "whole sequence."
            )
        if self.implementation not in IMPLEMENTATIONS:
            raise ValueError(
                f"SelfAttention.implementation is {self.implementation!r}; choose one of "
                f"{IMPLEMENTATIONS}."
            )
        if self.context is None and self.implementation == "local":
            raise ValueError(
                "SelfAttention.implementation is 'local', but there is no context; give one, or "
                "choose 'auto'."
            )
        if self.context is not None and self.implementation in _WHOLE_SEQUENCE_KERNELS:
            raise ValueError(
                f"SelfAttention.implementation is {self.implementation!r}, which cannot be limited "
                f"to a context of {self.context}; choose 'auto' or 'local'."
            )
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array, *, deterministic: bool = True) -> jax.Array:
        """Maps `[batch, frames, features]` with mask `[batch, frames]` to the same shape.

        Raises:
            UserError: The heads do not divide the features.
            ValueError: The implementation asked for cannot compute this here.
        """
        features = x.shape[-1]
        check_heads(features, self.heads, "SelfAttention")
        size = features // self.heads
        # [batch, frames, features] -> [batch, frames, heads, size]
        shape, axes = (self.heads, size), ("embed", "heads", "kv")
        query = Dense(shape, axes, dtype=self.dtype, name="query")(x)
        key = Dense(shape, axes, dtype=self.dtype, name="key")(x)
        value = Dense(shape, axes, dtype=self.dtype, name="value")(x)
        if self.rotary:
            # Values carry no position: only the products of queries and keys depend on it.
            query, key = rotate(query), rotate(key)
        # Whole heads per device: attention needs no communication between them.
        query = constrain(query, "batch", "frames", "act_heads", None)
        key = constrain(key, "batch", "frames", "act_heads", None)
        value = constrain(value, "batch", "frames", "act_heads", None)
        rng = None if deterministic or not self.dropout else self.make_rng("dropout")
        implementation = self.resolved_implementation(x.shape[1], size, drops=rng is not None)
        if implementation in _WHOLE_SEQUENCE_KERNELS:
            kernel = cudnn_attention if implementation == "cudnn" else pallas_attention
            mixed = kernel(query, key, value, mask)
        else:
            # [batch, frames, heads, size] -> [batch, heads, frames, size]
            query, key, value = (x.transpose(0, 2, 1, 3) for x in (query, key, value))
            mixed = self._mix(implementation, query, key, value, mask, rng).transpose(0, 2, 1, 3)
        return Dense(
            features, ("heads", "kv", "embed"), contracted=2, dtype=self.dtype, name="output"
        )(mixed)

    def _mix(
        self,
        implementation: str,
        query: jax.Array,
        key: jax.Array,
        value: jax.Array,
        mask: jax.Array,
        rng: jax.Array | None,
    ) -> jax.Array:
        """Attends without a kernel; queries, keys and values are `[batch, heads, frames, size]`."""
        drop: dict[str, Any] = {"dropout": self.dropout, "rng": rng}
        if implementation == "local":
            assert self.context is not None
            return local_attention(query, key, value, mask, context=self.context, **drop)
        if implementation == "blocked":
            return blocked_attention(query, key, value, mask, context=self.context, **drop)
        visible = mask[:, None, None, :]  # [batch, 1, queries, keys]
        if self.context is not None:
            frames = jnp.arange(mask.shape[1])
            # [batch, 1, queries, keys]. Queries are not masked: what a padded query gets is zeroed
            # at the top of the stack.
            visible = visible & (jnp.abs(frames[:, None] - frames[None, :]) <= self.context)
        return whole_attention(query, key, value, visible, **drop)

    def resolved_implementation(self, frames: int, size: int, *, drops: bool) -> str:
        """Returns the implementation that computes this.

        Args:
            frames: Length of the sequence, with its padding.
            size: Features of a head.
            drops: Whether dropout is at work.

        Returns:
            One of `IMPLEMENTATIONS`, not `auto`.

        Raises:
            ValueError: The implementation asked for cannot compute this here.
        """
        implementation = self.implementation
        on_gpu = jax.default_backend() == "gpu"
        if implementation == "cudnn" and not (on_gpu and cudnn_supports(self.dtype, size)):
            raise ValueError(
                "SelfAttention.implementation is 'cudnn', which needs a GPU, bfloat16 or float16, "
                f"and heads of at most 128 features, a multiple of 8; here are "
                f"{jax.default_backend()}, {jnp.dtype(self.dtype).name} and {size}. Choose 'auto'."
            )
        if implementation in _WHOLE_SEQUENCE_KERNELS and drops:
            return "blocked"
        if implementation != "auto":
            return implementation
        if self.context is not None and local_is_cheaper(frames, self.context):
            return "local"
        if on_gpu and self.context is None and not drops and cudnn_supports(self.dtype, size):
            return "cudnn"
        return "blocked" if frames >= 2 * BLOCK else "whole"
