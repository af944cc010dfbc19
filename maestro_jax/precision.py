"""How exactly matrices of float32 are multiplied.

An accelerator rounds the operands of a product of float32 unless it is asked not to: a TPU to
bfloat16, with 8 bits of mantissa, a GPU to TF32, with 11. A layer of a network can be trained with
that, and the layers here leave it to JAX's default. What decides cannot: whether two vectors are
equal, which of many is the nearest, how many frames a token lasts, a spectrum, a cosine. Such
products ask for `EXACT`. They take six passes on a TPU, and are small.
"""

from __future__ import annotations

import jax

EXACT = jax.lax.Precision.HIGHEST
"""Float32 operands as they are; also in the gradient."""
