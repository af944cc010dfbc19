"""What decides is computed from float32 numbers as they are, on a TPU too.

Ids, similarities, spectra and durations, each twice: with the operands of products rounded, as a
TPU rounds them unless asked not to, and as the program that JAX lowers for a TPU states it.
"""

from __future__ import annotations

import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rounded_products import with_rounded_products

from maestro_jax.losses.contrastive import contrastive_loss
from maestro_jax.losses.matching import matching_loss
from maestro_jax.losses.similarity import retrieval_accuracy
from maestro_jax.modules.duration import DurationModel
from maestro_jax.modules.frontend import LogMelFrontend
from maestro_jax.modules.quantizer import GumbelQuantizer, RandomProjectionQuantizer
from maestro_jax.modules.resampler import GaussianUpsampling, gaussian_weights
from maestro_jax.objectives.metrics import _cosine_matrix

RNG = np.random.default_rng(0)
FRAMES = jnp.asarray(RNG.normal(size=(2, 40, 48)), jnp.float32)
# Near to the frames, as matched vectors are.
NEAR = FRAMES + 0.3 * jnp.asarray(RNG.normal(size=FRAMES.shape), jnp.float32)
MASK = jnp.ones((2, 40), bool)
TOKEN = jnp.broadcast_to(jnp.arange(40) // 3, (2, 40))
IDS = jnp.asarray(RNG.integers(0, 9, (2, 40)))
DURATIONS = jnp.asarray(RNG.uniform(0.0, 9.0, (2, 40)), jnp.float32)
AUDIO = jnp.asarray(RNG.normal(0.0, 3000.0, (1, 3200)), jnp.int16)


def applied(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """The module as a function of its inputs, with parameters of this seed."""
    variables = nn.unbox(module.init(jax.random.key(0), *args, **kwargs))
    return lambda *given: module.apply(variables, *given, **kwargs)


def quantized(features: jax.Array) -> Any:
    module = GumbelQuantizer(9, 16)
    variables = nn.unbox(module.init(jax.random.key(0), features))
    rngs = {"gumbel": jax.random.key(1)}
    return module.apply(variables, features, deterministic=False, rngs=rngs)


def contrastive(context: jax.Array, codes: jax.Array) -> Any:
    """With its gradient, which comes of products too."""

    def loss(context: jax.Array, codes: jax.Array) -> Any:
        (total, _), (correct, _) = contrastive_loss(
            jax.random.key(0), context, codes, IDS, MASK, distractors=20
        )
        return total, correct

    return jax.value_and_grad(loss, (0, 1), has_aux=True)(context, codes)


def durations(embedded: jax.Array) -> Any:
    """Of a model without layers, which may round: the heads and their rounding are left."""
    model = DurationModel(blocks=0)
    predicted = applied(model, embedded, MASK)(embedded, MASK)
    return predicted, model.round(predicted, MASK)


CASES: dict[str, tuple[Any, tuple[jax.Array, ...]]] = {
    "codes of w2v-BERT": (quantized, (FRAMES,)),
    "codes of BEST-RQ": (
        applied(RandomProjectionQuantizer(codebooks=2, codes=50, code_features=8), FRAMES),
        (FRAMES,),
    ),
    "contrastive loss": (contrastive, (FRAMES, NEAR)),
    "InfoNCE": (lambda a, b: matching_loss(a, b, MASK, form="infonce"), (FRAMES, NEAR)),
    "retrieval": (lambda a, b: retrieval_accuracy(a, b, TOKEN, MASK), (FRAMES, NEAR)),
    "similarities": (_cosine_matrix, (FRAMES[0], NEAR[0])),
    "log-mel features": (
        applied(LogMelFrontend(), AUDIO, jnp.asarray([3200])),
        (AUDIO, jnp.asarray([3200])),
    ),
    "durations": (durations, (FRAMES,)),
    "Gaussian weights": (lambda d: gaussian_weights(d, jnp.full(d.shape, 0.5), 90), (DURATIONS,)),
}


@pytest.mark.parametrize("name", CASES)
def test_no_operand_is_rounded(name: str) -> None:
    function, args = CASES[name]
    expected, found = jax.jit(function)(*args), with_rounded_products(function)(*args)
    for one, other in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        if jnp.issubdtype(one.dtype, jnp.integer):
            np.testing.assert_array_equal(one, other)
        # A rounded operand is off by up to 4e-3.
        np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("name", CASES)
def test_the_program_for_a_tpu_says_so(name: str) -> None:
    function, args = CASES[name]
    program = jax.jit(function).trace(*args).lower(lowering_platforms=("tpu",)).as_text()
    products = re.findall(r"stablehlo\.(?:dot_general|convolution)\b.*", program)
    assert products or name == "Gaussian weights"
    assert [product for product in products if "[HIGHEST, HIGHEST]" not in product] == []
    assert "bf16" not in program


def test_the_emulation_rounds_what_is_left_to_the_default() -> None:
    def product(a: jax.Array, b: jax.Array) -> jax.Array:
        return jax.lax.map(lambda row: jnp.matmul(row, b), a)

    rounded = [np.asarray(x.astype(jnp.bfloat16), np.float64) for x in (FRAMES, FRAMES[0].T)]
    found = with_rounded_products(product)(FRAMES, FRAMES[0].T)
    np.testing.assert_allclose(found, rounded[0] @ rounded[1], rtol=1e-4, atol=1e-4)
    assert np.abs(found - product(FRAMES, FRAMES[0].T)).max() > 1e-2


def test_frames_of_gaussian_upsampling_stand_where_they_do() -> None:
    """The place of a frame in its token is a sum over tokens, and the range a product of e_t."""
    module = GaussianUpsampling()
    variables = nn.unbox(module.init(jax.random.key(0), FRAMES, DURATIONS, 90))
    program = (
        jax.jit(lambda e, d: module.apply(variables, e, d, 90))
        .trace(FRAMES, DURATIONS)
        .lower(lowering_platforms=("tpu",))
        .as_text()
    )
    kinds = ["HIGHEST" in line for line in program.splitlines() if "dot_general" in line]
    # Of the four products two are layers': the mixture of embeddings and the projection of places.
    assert sorted(kinds) == [False, False, True, True]
