"""Policies of rematerialisation: the same gradients, in less and less memory."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maestro_jax.layers.conformer import ConformerStack
from maestro_jax.layers.rematerialisation import POLICIES
from maestro_jax.modules.refiner import Refiner
from maestro_jax.modules.text_encoder import TextEncoder
from maestro_jax.modules.transformer_decoder import TransformerDecoder
from maestro_jax.training import parameter_trees

WIDTH, BATCH, FRAMES = 16, 2, 24
MASK = jnp.arange(FRAMES)[None, :] < jnp.asarray([FRAMES, 17])[:, None]
X = jnp.asarray(np.random.default_rng(0).normal(size=(BATCH, FRAMES, WIDTH)), jnp.float32)
TOKENS = jnp.asarray(np.random.default_rng(1).integers(3, 9, (BATCH, FRAMES)))

MODULES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "scanned": (
        functools.partial(ConformerStack, layers=2, features=WIDTH, heads=2, hidden=32, groups=2),
        (X, MASK),
    ),
    "unrolled": (
        functools.partial(
            ConformerStack, layers=2, features=WIDTH, heads=2, hidden=32, groups=2, scan=False
        ),
        (X, MASK),
    ),
    "text": (
        functools.partial(
            TextEncoder, vocab_size=9, features=WIDTH, conv_layers=1, layers=2, heads=2, hidden=32
        ),
        (TOKENS, MASK),
    ),
    "refiner": (
        functools.partial(Refiner, features=WIDTH, layers=2, heads=2, kernel_size=3, hidden=32),
        (X, MASK),
    ),
    "decoder": (
        functools.partial(
            TransformerDecoder, vocab_size=9, layers=2, features=WIDTH, heads=2, hidden=32
        ),
        (TOKENS, X, MASK),
    ),
}


def loss_of(module: nn.Module, inputs: tuple[Any, ...], params: Any) -> jax.Array:
    rngs = {"dropout": jax.random.key(1)}
    y = module.apply(params, *inputs, deterministic=False, rngs=rngs)
    return jnp.sum(y * jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape))


def drawn(module: nn.Module, inputs: tuple[Any, ...]) -> Any:
    abstract = jax.eval_shape(lambda: module.init(jax.random.key(0), *inputs))
    rng = np.random.default_rng(2)
    return parameter_trees.map_named(
        lambda _, leaf: jnp.asarray(rng.normal(size=leaf.shape) * 0.3, leaf.dtype),
        parameter_trees.unbox(abstract),
    )


@pytest.mark.extended
@pytest.mark.parametrize("kind", MODULES)
def test_gradients_are_those_of_keeping_everything(kind: str) -> None:
    make, inputs = MODULES[kind]
    params = drawn(make(dropout=0.2), inputs)
    found = {}
    # Every stack wraps its layers alike: all policies on one of them, three on the others.
    policies = ("none", "named", "full") if kind != "scanned" else POLICIES
    for policy in [policy for policy in policies if policy != "minimal"]:
        module = make(dropout=0.2, remat=policy)
        gradient = jax.grad(functools.partial(loss_of, module, inputs))
        assert ("remat" in str(jax.make_jaxpr(gradient)(params))) == (policy != "none")
        if policy != "offload":
            found[policy] = jax.jit(gradient)(params)
    for policy in found:
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=2e-5, err_msg=policy),
            found[policy],
            found["none"],
        )


def residual_bytes(policy: str | bool, **changes: Any) -> int:
    """What a stack's forward pass hands to its backward pass, but for parameters and inputs."""
    make, inputs = MODULES["scanned"]
    module = make(**{"layers": 4, "hidden": 4 * WIDTH, "remat": policy} | changes)
    params = drawn(module, inputs)
    kept = jax.eval_shape(
        lambda params: jax.vjp(functools.partial(loss_of, module, inputs), params)[1], params
    )
    own = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(kept)) - own


def test_less_and_less_is_kept() -> None:
    kept = {name: residual_bytes(name) for name in POLICIES if name != "offload"}
    order = ["none", "dots", "dots_no_batch", "named", "full"]
    sizes = [kept[name] for name in order]
    assert sizes == sorted(sizes, reverse=True), kept
    assert len(set(sizes)) == len(sizes), kept
    assert kept["minimal"] == kept["dots_no_batch"]
    assert residual_bytes(True) == kept["full"]
    assert residual_bytes(False) == kept["none"]


def test_wide_layers_make_no_difference_to_what_is_named() -> None:
    """What `named` keeps is as wide as the block, whatever the width of its feed-forward layers."""
    wide = residual_bytes("named", hidden=16 * WIDTH) - residual_bytes("named")
    assert wide == 0
    dots = residual_bytes("dots_no_batch", hidden=16 * WIDTH) - residual_bytes("dots_no_batch")
    # Two feed-forward layers, 4 blocks, float32.
    assert dots >= 2 * 4 * BATCH * FRAMES * 12 * WIDTH * 4


def test_compiled_memory_falls_with_what_is_kept() -> None:
    """What the compiled program asks for beside its arguments."""
    make, _ = MODULES["scanned"]
    x = jax.ShapeDtypeStruct((4, 128, 32), jnp.float32)
    mask = jax.ShapeDtypeStruct((4, 128), jnp.bool_)
    found = {}
    for policy in ("none", "dots_no_batch", "named", "full"):
        module = make(layers=6, features=32, hidden=128, remat=policy)

        def gradient(params: Any, x: Any, mask: Any, module: nn.Module = module) -> Any:
            return jax.grad(lambda p: jnp.sum(module.apply(p, x, mask) ** 2))(params)

        abstract = jax.eval_shape(
            lambda x, mask, module=module: module.init(jax.random.key(0), x, mask), x, mask
        )
        lowered = jax.jit(gradient).lower(parameter_trees.unbox(abstract), x, mask)
        found[policy] = lowered.compile().memory_analysis().temp_size_in_bytes
    sizes = list(found.values())
    assert sizes == sorted(sizes, reverse=True), found
    assert sizes[-1] < 0.5 * sizes[0], found


def test_an_unknown_policy_is_refused_with_the_nearest() -> None:
    for kind, (make, _) in MODULES.items():
        with pytest.raises(ValueError, match=r"remat is 'dot'.*Did you mean 'dots'"):
            make(remat="dot")
        assert kind
