"""What a Conformer stack can be asked for: a layer's output, a band of attention, adapters."""

from __future__ import annotations

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from maestro_jax.layers.attention import SelfAttention
from maestro_jax.layers.conformer import ConformerStack
from maestro_jax.layers.languages import ResidualAdapter
from maestro_jax.layers.masking import length_mask
from maestro_jax.training import parameter_trees
from maestro_jax.training.optimizers import AdamConfig
from maestro_jax.training.parameter_groups import ParameterGroup

RNG = np.random.default_rng(0)
FEATURES = 8
X = RNG.normal(size=(3, 7, FEATURES)).astype(np.float32)
MASK = length_mask(jnp.array([7, 4, 0]), 7)
LANGUAGE = jnp.array([1, 0, 1])
LAYERS = 2


def stack(**settings: object) -> ConformerStack:
    common = {"layers": LAYERS, "features": FEATURES, "heads": 2, "hidden": 12, "groups": 2}
    return ConformerStack(**(common | settings))


def drawn(module: nn.Module, *inputs: object) -> dict:
    """Parameters of which none is zero or one."""
    abstract = parameter_trees.unbox(jax.eval_shape(module.init, jax.random.key(0), *inputs))
    return jax.tree.map(lambda p: (0.4 * RNG.normal(size=p.shape)).astype(np.float32), abstract)


def unrolled(params: dict) -> dict:
    """The parameters of scanned layers, layer by layer."""
    layers = params["params"]["layers"]
    return {f"layer_{i}": jax.tree.map(lambda p, i=i: p[i], layers) for i in range(LAYERS)}


@pytest.mark.parametrize("scan", [True, False])
def test_a_intermediate_layer_is_the_top_of_a_shorter_stack(scan: bool) -> None:
    params = drawn(stack(), X, MASK)
    layers = unrolled(params)
    module = stack(scan=scan)

    @jax.jit
    def tap(params: dict) -> tuple[tuple[jax.Array, jax.Array], dict]:
        def loss(params: dict) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            both = module.apply(params, X, MASK, layer=1, method="with_intermediate")
            return jnp.sum(both[1] * X), both

        gradient, both = jax.grad(loss, has_aux=True)(params)
        return both, gradient

    (top, intermediate), gradient = tap(params if scan else {"params": layers})
    shorter = jax.jit(stack(layers=1, scan=False).apply)
    np.testing.assert_allclose(intermediate, shorter({"params": layers}, X, MASK), atol=1e-5)
    # The top is the second block's output for it.
    second = jax.jit(stack(layers=1, scan=False, positions="none").apply)
    upper = {"params": {"layer_0": layers["layer_1"]}}
    np.testing.assert_allclose(top, second(upper, intermediate, MASK), atol=1e-4)
    # Nothing above the intermediate layer learns from it; everything below does.
    gradients = unrolled(gradient) if scan else gradient["params"]
    assert all(np.any(leaf) for leaf in jax.tree.leaves(gradients["layer_0"]["convolution"]))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradients["layer_1"]))


def test_a_tap_keeps_no_other_layer_s_output() -> None:
    module = stack()
    params = drawn(module, X, MASK)
    program = jax.make_jaxpr(
        lambda p: module.apply(p, X, MASK, layer=1, method="with_intermediate")
    )(params)
    (loop,) = [each for each in program.eqns if each.primitive.name == "scan"]
    assert all(result.aval.shape in ((), X.shape) for result in loop.outvars)


def test_a_tap_outside_the_stack_is_refused() -> None:
    module = stack()
    with pytest.raises(ValueError, match="no block 3 among 2"):
        jax.eval_shape(
            lambda: module.init(jax.random.key(0), X, MASK, layer=3, method="with_intermediate")
        )


@pytest.mark.parametrize("context", [None, 0, 2, 10])
def test_attention_sees_a_band(context: int | None) -> None:
    module = SelfAttention(heads=2, context=context)
    params = drawn(module, X, MASK)["params"]
    found = jax.jit(module.apply)({"params": params}, X, MASK)

    def project(name: str) -> np.ndarray:
        weights = {k: np.asarray(v, np.float64) for k, v in params[name].items()}
        return np.einsum("bfe,ehd->bhfd", X, weights["kernel"]) + weights["bias"][:, None]

    query, key, value = project("query"), project("key"), project("value")
    frames = np.arange(X.shape[1])
    for row, length in enumerate((7, 4)):
        mixed = np.zeros((X.shape[1], 2, FEATURES // 2))
        for head in range(2):
            for frame in range(length):
                near = (frames < length) & (
                    abs(frames - frame) <= (99 if context is None else context)
                )
                logits = key[row, head, near] @ query[row, head, frame] / np.sqrt(FEATURES // 2)
                weights = np.exp(logits - logits.max())
                mixed[frame, head] = weights / weights.sum() @ value[row, head, near]
        expected = np.einsum("fhd,hde->fe", mixed, params["output"]["kernel"])
        expected = expected + params["output"]["bias"]
        np.testing.assert_allclose(found[row, :length], expected[:length], atol=1e-5)


def test_the_stack_hands_its_context_down() -> None:
    module = stack(layers=1, attention_context=1, kernel_size=1, groups=0, positions="none")
    params = drawn(module, X, MASK)
    mask = jnp.ones((1, 7), bool)
    # With convolutions of one frame, a frame depends on its neighbours and on no other.
    jacobian = jax.jit(jax.jacobian(lambda x: module.apply(params, x, mask)[0, :, 0]))(X[:1])
    reached = np.abs(jacobian[:, 0]).max(axis=-1) > 0
    np.testing.assert_array_equal(reached, abs(np.subtract.outer(range(7), range(7))) <= 1)


@pytest.mark.parametrize("languages", [0, 2])
def test_adapters_are_chosen_by_language(languages: int) -> None:
    module = ResidualAdapter(bottleneck=3, languages=languages)
    params = drawn(module, X, LANGUAGE)["params"]
    rows = jnp.array([1, 0, -1])
    found = jax.jit(module.apply)({"params": params}, X, rows)
    for row, language in enumerate([1, 0, -1] if languages else [0, 0, 0]):
        if language < 0:
            np.testing.assert_array_equal(found[row], X[row])
            continue
        own = {name: np.asarray(value[language], np.float64) for name, value in params.items()}
        wide = X[row].astype(np.float64)
        y = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 1e-5)
        y = (y * own["scale"] + own["bias"]) @ own["down_kernel"] + own["down_bias"]
        y = np.maximum(y, 0) @ own["up_kernel"] + own["up_bias"]
        np.testing.assert_allclose(found[row], wide + y, atol=1e-5)


def test_adapters_change_nothing_at_first() -> None:
    plain, adapted = stack(), stack(adapter_features=3, adapter_languages=2)
    params = nn.unbox(jax.jit(adapted.init)(jax.random.key(0), X, MASK, LANGUAGE))
    without = {"params": {"layers": dict(params["params"]["layers"])}}
    del without["params"]["layers"]["adapter"]
    found = jax.jit(adapted.apply)(params, X, MASK, LANGUAGE)
    np.testing.assert_array_equal(found, jax.jit(plain.apply)(without, X, MASK))
    with pytest.raises(ValueError, match="which language"):
        jax.eval_shape(adapted.apply, params, X, MASK)
    with pytest.raises(ValueError, match="adapter_features"):
        stack(adapter_languages=2)


def test_all_but_the_adapters_can_be_frozen_by_name() -> None:
    module = stack(layers=2, adapter_features=3, adapter_languages=2)
    params = drawn(module, X, MASK, LANGUAGE)["params"]
    rest = ParameterGroup(name="rest", patterns=r"(?!.*\badapter/).*", frozen=True)
    transformation = AdamConfig(groups=(rest,)).build(params)

    @jax.jit
    def updated(params: dict) -> dict:
        gradient = jax.tree.map(jnp.ones_like, params)
        updates, _ = transformation.update(gradient, transformation.init(params), params)
        return optax.apply_updates(params, updates)

    new = updated(params)
    for (name, before), after in zip(
        parameter_trees.named_leaves(params), jax.tree.leaves(new), strict=True
    ):
        adapter = re.search(r"\badapter\b", name) is not None
        assert np.array_equal(before, after) != adapter, name
