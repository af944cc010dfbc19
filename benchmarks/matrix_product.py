"""Measures the speed of a large product of square matrices, the practical peak of a machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

SIZES = {"cpu": 2048, "gpu": 8192, "tpu": 8192}
# Products per measurement, so that the time to start them does not count.
_PRODUCTS = {"cpu": 1, "gpu": 20, "tpu": 20}


def prepare(job: dict[str, Any]) -> tuple[dict[str, Any], Callable[[], object]]:
    """Prepares products on the first device; without a `size`, one that fills the device."""
    import jax
    import jax.numpy as jnp

    device = jax.devices()[0]
    size = job["size"] or SIZES.get(device.platform, 2048)
    count = _PRODUCTS.get(device.platform, 1)
    rng = np.random.default_rng(0)
    # This scale keeps the magnitude of a chain of products constant.
    left, right = (
        jnp.asarray(rng.standard_normal((size, size), np.float32) * scale, job["dtype"])
        for scale in (1.0, size**-0.5)
    )

    @jax.jit
    def products(x: jax.Array, y: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, count, lambda _, x: x @ y, x) if count > 1 else x @ y

    jax.block_until_ready(products(left, right))
    report = {
        "flops": 2.0 * size**3 * count,
        "platform": device.platform,
        "device": device.device_kind,
        "devices": len(jax.devices()),
        "size": size,
    }
    return report, lambda: jax.block_until_ready(products(left, right))
