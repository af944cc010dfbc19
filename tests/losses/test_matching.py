"""Modality matching: values, who learns, and what scaling may not change."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maestro_jax.losses.matching import cosine_similarity, matching_loss
from maestro_jax.losses.reduction import mean

MASK = jnp.array([[True, True, False], [True, False, False]])


def sides():
    rng = np.random.default_rng(0)
    return rng.normal(size=(2, 2, 3, 6)).astype(np.float32)


def test_squared_error_over_valid_frames():
    speech, text = sides()
    total, count = matching_loss(speech, text, MASK, normalize=False)
    squares = ((speech.astype(np.float64) - text) ** 2).mean(-1)
    np.testing.assert_allclose(total, squares[np.asarray(MASK)].sum(), rtol=1e-5)
    assert float(count) == 3

    def standard(x):
        x = x.astype(np.float64)
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)

    squares = ((standard(speech) - standard(text)) ** 2).mean(-1)
    total, _ = matching_loss(speech, text, MASK)
    np.testing.assert_allclose(total, squares[np.asarray(MASK)].sum(), rtol=1e-4)


def test_cosine_form():
    speech, text = sides()
    expected = 0.0
    for b, t in zip(*np.nonzero(np.asarray(MASK)), strict=True):
        a, c = speech[b, t].astype(np.float64), text[b, t].astype(np.float64)
        expected += 1 - a @ c / np.linalg.norm(a) / np.linalg.norm(c)
    total, _ = matching_loss(speech, text, MASK, form="cosine")
    np.testing.assert_allclose(total, expected, rtol=1e-4)
    np.testing.assert_allclose(cosine_similarity(speech, -3 * speech), -1.0, atol=1e-5)


@pytest.mark.parametrize("form", ["mse", "cosine"])
def test_scale_does_not_matter(form):
    speech, text = sides()
    one, _ = matching_loss(speech, text, MASK, form=form)
    other, _ = matching_loss(5 * speech, 0.5 * text, MASK, form=form)
    np.testing.assert_allclose(one, other, rtol=1e-3)


@pytest.mark.parametrize("form", ["mse", "cosine"])
@pytest.mark.parametrize("stopped", [True, False])
def test_who_learns(form, stopped):
    speech, text = sides()

    def loss(speech, text):
        return mean(matching_loss(speech, text, MASK, form=form, stop_speech_gradient=stopped))

    to_speech, to_text = jax.grad(loss, (0, 1))(speech, text)
    assert np.any(to_speech) != stopped
    assert np.any(to_text)
    assert not np.any(np.asarray(to_text)[~np.asarray(MASK)])


@pytest.mark.parametrize("form", ["mse", "cosine"])
@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_nothing_valid_is_zero_with_finite_gradients(form, scale):
    speech, text = scale * sides()

    def loss(text, mask):
        return mean(matching_loss(speech, text, mask, form=form))

    value, gradient = jax.value_and_grad(loss)(text, jnp.zeros_like(MASK))
    assert float(value) == 0.0
    assert not np.any(gradient)
    assert np.all(np.isfinite(jax.grad(loss)(text, MASK)))


def test_unknown_form():
    with pytest.raises(ValueError, match="choose one of"):
        matching_loss(*sides(), MASK, form="l3")
