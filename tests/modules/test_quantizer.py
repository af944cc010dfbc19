"""The Gumbel quantizer against its equations."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maestro_jax.modules.quantizer import GumbelQuantizer

CODES, CODE_FEATURES = 6, 3


def made(frames=4):
    features = np.random.default_rng(0).normal(size=(2, frames, 5)).astype(np.float32)
    module = GumbelQuantizer(CODES, CODE_FEATURES)
    variables = nn.unbox(module.init(jax.random.key(0), features))
    dense = variables["params"]["logits"]
    kernel, bias = (np.asarray(dense[name], np.float64) for name in ("kernel", "bias"))
    logits = features.astype(np.float64) @ kernel + bias
    exponentials = np.exp(logits)
    return module, variables, features, logits, exponentials / exponentials.sum(-1, keepdims=True)


def test_most_likely_code_and_probabilities():
    module, variables, features, logits, softmax = made()
    found = module.apply(variables, features)
    np.testing.assert_array_equal(found.ids, logits.argmax(-1))
    np.testing.assert_allclose(found.probabilities, softmax, atol=1e-5)
    codebook = np.asarray(variables["params"]["codebook"])
    np.testing.assert_allclose(found.vectors, codebook[logits.argmax(-1)], atol=1e-5)


def test_temperature_anneals_to_its_floor():
    module = GumbelQuantizer(temperature_start=2.0, temperature_end=0.5, temperature_decay=0.9)
    assert float(module.temperature(0)) == 2.0
    np.testing.assert_allclose(module.temperature(3), 2.0 * 0.9**3, rtol=1e-6)
    assert float(module.temperature(100)) == 0.5


def test_the_paper_s_annealing_is_exact_after_half_a_million_steps():
    expected = 2.0 * float(np.float64(0.999995) ** 590_000)
    np.testing.assert_allclose(GumbelQuantizer().temperature(590_000), expected, rtol=1e-5)
    np.testing.assert_allclose(GumbelQuantizer().temperature(600_000), 0.1, rtol=1e-6)


@pytest.mark.parametrize(
    "settings", [{"temperature_end": 3.0}, {"temperature_end": 0.0}, {"temperature_decay": 1.5}]
)
def test_annealing_that_goes_nowhere_is_refused(settings):
    with pytest.raises(ValueError, match=str(next(iter(settings.values())))):
        GumbelQuantizer(**settings)


def test_gradient_passes_straight_through_the_softmax():
    module, variables, features, _, softmax = made()
    direction = np.random.default_rng(1).normal(size=(2, 4, CODE_FEATURES))
    found = jax.grad(lambda x: jnp.sum(module.apply(variables, x).vectors * direction))(features)
    kernel = np.asarray(variables["params"]["logits"]["kernel"], np.float64)
    codebook = np.asarray(variables["params"]["codebook"], np.float64)
    to_choice = direction @ codebook.T
    to_logits = softmax * (to_choice - (softmax * to_choice).sum(-1, keepdims=True))
    np.testing.assert_allclose(found, to_logits @ kernel.T, atol=1e-5)


def test_samples_follow_the_softmax_and_are_codes():
    module, variables, features, _, softmax = made(frames=1)
    repeated = np.repeat(features[:1], 4000, axis=1)
    found = module.apply(
        variables, repeated, 0, deterministic=False, rngs={"gumbel": jax.random.key(1)}
    )
    codebook = np.asarray(variables["params"]["codebook"])
    distances = np.abs(np.asarray(found.vectors[0])[:, None] - codebook).max(-1)
    np.testing.assert_allclose(distances.min(-1), 0.0, atol=1e-5)
    shares = np.bincount(distances.argmin(-1), minlength=CODES) / 4000
    # Four standard deviations of a share of one half are 0.032.
    np.testing.assert_allclose(shares, softmax[0, 0], atol=0.032)
    # The targets of masked prediction carry no noise.
    assert len(np.unique(found.ids)) == 1


def test_a_new_quantizer_is_sure_of_its_codes_which_point_everywhere():
    """With the weights of other layers noise would pick nine codes of ten."""
    features = np.random.default_rng(0).normal(size=(1, 500, 640)).astype(np.float32)
    module = GumbelQuantizer(64, 64)
    variables = nn.unbox(module.init(jax.random.key(0), features))
    rngs = {"gumbel": jax.random.key(1)}
    found = module.apply(variables, features, deterministic=False, rngs=rngs)
    assert np.mean(found.sampled_ids == found.ids) > 0.8
    assert len(np.unique(found.ids)) > 60
    codes = np.asarray(variables["params"]["codebook"], np.float64)
    codes /= np.linalg.norm(codes, axis=1, keepdims=True)
    cosines = (codes @ codes.T)[~np.eye(64, dtype=bool)]
    # Of unrelated directions in 64 dimensions the cosine is 0, give or take an eighth.
    assert abs(cosines.mean()) < 0.02 and cosines.std() < 0.2
