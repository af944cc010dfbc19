"""The Conformer's parts against their definitions, and what padding may not do."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maestro_jax.errors import UserError
from maestro_jax.layers.attention import SelfAttention
from maestro_jax.layers.conformer import ConformerStack
from maestro_jax.layers.convolution import LightweightConv, depthwise_convolution
from maestro_jax.layers.masking import length_mask, span_mask
from maestro_jax.layers.normalization import MaskedGroupNorm
from maestro_jax.layers.positions import rotate

RNG = np.random.default_rng(0)


def stack(**settings: object) -> ConformerStack:
    common = {"layers": 2, "features": 16, "heads": 2, "hidden": 16, "groups": 4}
    return ConformerStack(**(common | settings))


def test_depthwise_convolution_is_one_convolution_a_channel() -> None:
    x, kernel = RNG.normal(size=(2, 9, 3)), RNG.normal(size=(5, 3))
    found = depthwise_convolution(jnp.asarray(x), jnp.asarray(kernel))
    for row in range(2):
        for channel in range(3):
            expected = np.correlate(np.pad(x[row, :, channel], 2), kernel[:, channel], "valid")
            np.testing.assert_allclose(found[row, :, channel], expected, atol=1e-5)


def test_lightweight_convolution_shares_a_normalised_kernel_within_a_head() -> None:
    module = LightweightConv(heads=2, kernel_size=3)
    x, mask = RNG.normal(size=(1, 6, 4)).astype(np.float32), np.ones((1, 6), bool)
    weights = RNG.normal(size=(3, 2)).astype(np.float32)
    found = module.apply({"params": {"weights": weights}}, x, mask)
    padded = np.pad(x[0], ((1, 1), (0, 0)))
    for frame in range(6):
        for channel in range(4):
            head = weights[:, channel // 2]
            normalised = np.exp(head) / np.exp(head).sum()
            expected = sum(normalised[i] * padded[frame + i, channel] for i in range(3))
            np.testing.assert_allclose(found[0, frame, channel], expected, atol=1e-5)


@pytest.mark.parametrize("module", [LightweightConv(3, 3), SelfAttention(3)])
def test_heads_that_do_not_divide_the_features_are_refused(module: nn.Module) -> None:
    x, mask = jnp.zeros((1, 6, 8)), jnp.ones((1, 6), bool)
    with pytest.raises(UserError, match=r"heads is 3, .* 8 features; choose one of 1, 2, 4\."):
        jax.eval_shape(module.init, jax.random.key(0), x, mask)


def test_group_norm_is_flax_s_where_nothing_is_padded() -> None:
    x = RNG.normal(size=(2, 7, 8)).astype(np.float32)
    ours, theirs = MaskedGroupNorm(4), nn.GroupNorm(4, epsilon=1e-5)
    params = nn.unbox(ours.init(jax.random.key(0), x, np.ones((2, 7), bool)))
    expected = theirs.apply(params, x)
    np.testing.assert_allclose(ours.apply(params, x, np.ones((2, 7), bool)), expected, atol=1e-5)
    mask = np.asarray(length_mask(jnp.array([7, 4]), 7))
    ragged = ours.apply(params, x, mask)
    alone = theirs.apply(params, x[1:, :4])
    np.testing.assert_allclose(ragged[1:, :4], alone, atol=1e-5)


def test_valid_frames_do_not_see_the_padding() -> None:
    module = stack(positions="rotary", scan=False)
    x = RNG.normal(size=(2, 10, 16)).astype(np.float32)
    mask = length_mask(jnp.array([6, 10]), 10)
    params = nn.unbox(module.init(jax.random.key(0), x, mask))
    whole = module.apply(params, x, mask)
    alone = module.apply(params, x[:1, :6], mask[:1, :6])
    np.testing.assert_allclose(whole[:1, :6], alone, atol=2e-5)
    assert not np.asarray(whole[0, 6:]).any()


def test_an_absent_example_gives_finite_gradients() -> None:
    module = stack(positions="rotary", scan=False)
    x = RNG.normal(size=(2, 6, 16)).astype(np.float32)
    mask = length_mask(jnp.array([0, 6]), 6)
    params = nn.unbox(module.init(jax.random.key(0), x, mask))
    gradient = jax.grad(lambda p: jnp.sum(jnp.square(module.apply(p, x, mask))))(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_scanned_layers_compute_what_unrolled_layers_do() -> None:
    x, mask = RNG.normal(size=(1, 5, 16)).astype(np.float32), np.ones((1, 5), bool)
    loop, scanned = stack(scan=False), stack(scan=True)
    params = nn.unbox(loop.init(jax.random.key(0), x, mask))["params"]
    layers = [params["layer_0"], params["layer_1"]]
    stacked = {"layers": jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)}
    found = scanned.apply({"params": stacked}, x, mask)
    np.testing.assert_allclose(found, loop.apply({"params": params}, x, mask), atol=1e-5)


def test_rotary_products_depend_on_distance_alone() -> None:
    query, key = RNG.normal(size=8).astype(np.float32), RNG.normal(size=8).astype(np.float32)
    queries = rotate(jnp.broadcast_to(query, (1, 12, 1, 8)))[0, :, 0]
    keys = rotate(jnp.broadcast_to(key, (1, 12, 1, 8)))[0, :, 0]
    products = np.asarray(queries @ keys.T)
    for distance in (-5, 0, 3):
        diagonal = np.diagonal(products, distance)
        np.testing.assert_allclose(diagonal, diagonal[0], atol=1e-4)
    assert abs(products[0, 0] - products[0, 5]) > 1e-3


def test_half_of_the_frames_are_masked_with_the_paper_s_settings() -> None:
    valid = np.asarray(length_mask(jnp.full((64,), 300), 400))
    masked = np.asarray(span_mask(jax.random.key(0), valid, start_probability=0.065, span=10))
    assert not masked[~valid].any()
    # 1 - (1 - 0.065)^10 = 0.489, the 49% that Ask2Mask reports.
    assert abs(masked[valid].mean() - 0.489) < 0.02
