"""Layers that are compiled once and looped over, beside the same layers one by one."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maestro_jax.layers.masking import length_mask
from maestro_jax.modules.refiner import Refiner
from maestro_jax.modules.text_encoder import TextEncoder

SIZES = {"features": 8, "layers": 3, "heads": 2, "hidden": 12}


def text_encoder(**changes):
    return TextEncoder(vocab_size=7, conv_layers=1, **SIZES, **changes)


def refiner(**changes):
    return Refiner(kernel_size=3, **SIZES, **changes)


@pytest.mark.parametrize(
    ("build", "one", "all_of_them"),
    [(text_encoder, "layer_{}", "layers"), (refiner, "block_{}", "blocks")],
)
@pytest.mark.parametrize("remat", ["none", "full"])
def test_a_loop_computes_what_layers_do(build, one, all_of_them, remat):
    rng = np.random.default_rng(0)
    mask = np.asarray(length_mask(jnp.array([5, 3]), 5))
    x = rng.normal(size=(2, 5, 8)).astype(np.float32)
    if build is text_encoder:
        x = rng.integers(1, 7, (2, 5))
    unrolled, looped = build(), build(scan=True, remat=remat)
    params = nn.unbox(jax.jit(unrolled.init)(jax.random.key(0), x, mask))["params"]

    def stacked(params):
        layers = [params[one.format(index)] for index in range(3)]
        names = [one.format(index) for index in range(3)]
        others = {name: leaf for name, leaf in params.items() if name not in names}
        return {**others, all_of_them: jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)}

    def outputs(module, arrange):
        def loss(params):
            y = module.apply({"params": arrange(params)}, x, mask)
            return jnp.sum(y * jnp.arange(y.shape[-1])), y

        step = jax.value_and_grad(loss, has_aux=True)
        return jax.jit(step)(params)

    (_, expected), expected_gradient = outputs(unrolled, lambda params: params)
    (_, found), gradient = outputs(looped, stacked)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    for leaf, other in zip(
        jax.tree.leaves(gradient), jax.tree.leaves(expected_gradient), strict=True
    ):
        np.testing.assert_allclose(leaf, other, atol=2e-4)
    # Each layer begins with weights of its own.
    drawn = nn.unbox(jax.jit(looped.init)(jax.random.key(0), x, mask))["params"][all_of_them]
    for path, leaf in jax.tree_util.tree_leaves_with_path(drawn):
        assert leaf.shape[0] == 3
        if path[-1].key == "kernel":
            assert not np.allclose(leaf[0], leaf[1])


def test_a_loop_with_attention_is_refused():
    with pytest.raises(ValueError, match=r"Refiner\.scan .* 'attention_lconv'; set scan to False"):
        refiner(scan=True, mixer="attention_lconv")
