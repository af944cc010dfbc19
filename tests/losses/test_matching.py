"""Modality matching: values, who learns, and what scaling may not change."""

from __future__ import annotations

import functools
import re

import jax
import numpy as np
import pytest

from maestro_jax.losses import matching as losses
from maestro_jax.losses.matching import FORMS, NEGATIVES, STOPPED
from maestro_jax.losses.reduction import mean
from maestro_jax.losses.similarity import cosine_similarity
from maestro_jax.training.partitioning import Partitioning

# A full row, one with a hole, an empty one, one frame alone. Labels repeat within and across rows.
MASK = np.array([[1] * 5, [1, 1, 0, 1, 0], [0] * 5, [0, 1, 0, 0, 0]], bool)
LABELS = np.array([[3, 3, 4, 3, 5], [4, 6, 6, 6, 6], [3] * 5, [6] * 5], np.int32)

matching_loss = jax.jit(
    losses.matching_loss,
    static_argnames=("form", "stop_gradient", "normalize", "temperature", "negatives"),
)


def sides():
    rng = np.random.default_rng(7)
    return rng.normal(size=(2, 4, 5, 6)).astype(np.float32)


def value_and_gradients(speech, text, mask, **options):
    """The mean loss, and its gradients for both sides."""

    def loss(speech, text):
        return mean(losses.matching_loss(speech, text, mask, **options))

    return jax.jit(jax.value_and_grad(loss, (0, 1)))(speech, text)


def test_squared_error_over_valid_frames():
    speech, text = sides()
    total, count = matching_loss(speech, text, MASK, normalize=False)
    squares = ((speech.astype(np.float64) - text) ** 2).mean(-1)
    np.testing.assert_allclose(total, squares[MASK].sum(), rtol=1e-5)
    assert float(count) == 9

    def standard(x):
        x = x.astype(np.float64)
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)

    squares = ((standard(speech) - standard(text)) ** 2).mean(-1)
    total, _ = matching_loss(speech, text, MASK)
    np.testing.assert_allclose(total, squares[MASK].sum(), rtol=1e-4)


def test_cosine_form():
    speech, text = sides()
    expected, correlation = 0.0, 0.0
    for b, t in zip(*np.nonzero(MASK), strict=True):
        a, c = speech[b, t].astype(np.float64), text[b, t].astype(np.float64)
        expected += 1 - a @ c / np.linalg.norm(a) / np.linalg.norm(c)
        correlation += 1 - np.corrcoef(a, c)[0, 1]
    total, _ = matching_loss(speech, text, MASK, form="cosine", normalize=False)
    np.testing.assert_allclose(total, expected, rtol=1e-4)
    total, _ = matching_loss(speech, text, MASK, form="cosine")
    np.testing.assert_allclose(total, correlation, rtol=1e-4)
    np.testing.assert_allclose(cosine_similarity(speech, -3 * speech), -1.0, atol=1e-5)


def infonce_by_definition(speech, text, labels, negatives, temperature):
    """Total and count over the frames that have a negative, one frame and direction at a time."""

    def unit(x):
        return x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=-1, keepdims=True)

    speech, text = unit(speech), unit(text)
    places = [tuple(place) for place in np.argwhere(MASK)]
    total, count = 0.0, 0
    for place in places:
        others = [
            other
            for other in places
            if other != place
            and (negatives == "batch" or other[0] == place[0])
            and (labels is None or labels[other] != labels[place])
        ]
        if not others:
            continue
        count += 1
        for a, b in ((speech, text), (text, speech)):
            scores = np.array([a[place] @ b[k] for k in (place, *others)]) / temperature
            total += 0.5 * (np.log(np.exp(scores).sum()) - scores[0])
    return total, count


@pytest.mark.parametrize("negatives", ["utterance", "batch"])
@pytest.mark.parametrize("labels", [None, LABELS], ids=["all", "other labels"])
@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_infonce_form(negatives, labels, temperature):
    speech, text = sides()
    expected, count = infonce_by_definition(speech, text, labels, negatives, temperature)
    found = matching_loss(
        speech,
        text,
        MASK,
        form="infonce",
        normalize=False,
        negatives=negatives,
        labels=labels,
        temperature=temperature,
    )
    np.testing.assert_allclose(found, (expected, count), rtol=1e-5)
    # Of nine frames, one is alone in its utterance.
    assert count == (9 if negatives == "batch" else 8)


def test_infonce_prefers_matched_frames_and_is_symmetric():
    speech, text = sides()
    settings = {"form": "infonce", "stop_gradient": "none", "labels": LABELS}
    matched = mean(matching_loss(speech, 2 * speech, MASK, **settings))
    unmatched = mean(matching_loss(speech, text, MASK, **settings))
    assert float(matched) < 0.1 * float(unmatched)
    np.testing.assert_allclose(
        unmatched, mean(matching_loss(text, speech, MASK, **settings)), rtol=1e-6
    )
    _, (to_speech, _) = value_and_gradients(speech, text, MASK, **settings)
    _, (_, to_text) = value_and_gradients(text, speech, MASK, **settings)
    np.testing.assert_allclose(to_speech, to_text, atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_scale_does_not_matter(form):
    speech, text = sides()
    one, _ = matching_loss(speech, text, MASK, form=form)
    other, _ = matching_loss(5 * speech, 0.5 * text, MASK, form=form)
    np.testing.assert_allclose(one, other, rtol=1e-3)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("stopped", STOPPED)
def test_who_learns(form, normalize, stopped):
    speech, text = sides()

    options = {"form": form, "normalize": normalize, "stop_gradient": stopped}
    _, (to_speech, to_text) = value_and_gradients(speech, text, MASK, **options)
    assert np.any(to_speech) == (stopped != "speech")
    assert np.any(to_text) == (stopped != "text")
    for gradient in (to_speech, to_text):
        assert not np.any(np.asarray(gradient)[~MASK])


@pytest.mark.parametrize(
    ("form", "negatives"),
    [("mse", "utterance"), ("cosine", "utterance"), *(("infonce", where) for where in NEGATIVES)],
)
@pytest.mark.parametrize("normalize", [True, False])
def test_nothing_valid_is_zero_with_finite_gradients(form, negatives, normalize):
    """Also for features that are all zero, as silence may give."""
    options = {"form": form, "normalize": normalize, "negatives": negatives}

    def loss(sides, mask):
        return mean(losses.matching_loss(*sides, mask, stop_gradient="none", **options))

    compiled = jax.jit(jax.value_and_grad(loss))
    for scale in (0.0, 1.0):
        value, gradient = compiled(scale * sides(), np.zeros_like(MASK))
        assert float(value) == 0.0
        assert not np.any(gradient)
        value, gradient = compiled(scale * sides(), MASK)
        assert np.isfinite(value) and np.all(np.isfinite(gradient))


@pytest.mark.skipif(jax.device_count() < 8, reason="needs eight (CPU) devices")
def test_negatives_of_the_whole_batch_are_those_of_one_device():
    rng = np.random.default_rng(0)
    speech, text = rng.normal(size=(2, 16, 6, 4)).astype(np.float32)
    mask = np.arange(6) < rng.integers(0, 7, (16, 1))
    labels = rng.integers(1, 5, (16, 6)).astype(np.int32)

    @functools.partial(jax.value_and_grad, argnums=(0, 1))
    def loss(speech, text, mask, labels):
        options = {"form": "infonce", "negatives": "batch", "stop_gradient": "none"}
        return mean(losses.matching_loss(speech, text, mask, labels=labels, **options))

    expected, expected_gradients = jax.jit(loss)(speech, text, mask, labels)
    partitioning = Partitioning(mesh_shape=(2, 4, 1))
    mesh = partitioning.mesh()
    rows = partitioning.batch_sharding(mesh)
    with partitioning.activate(mesh):
        placed = jax.device_put((speech, text, mask, labels), rows)
        step = jax.jit(loss, in_shardings=rows)
        program = step.lower(*placed).compile()
        found, gradients = program(*placed)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    for got, want in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(got, want, atol=1e-7)
        assert got.sharding.shard_shape(got.shape)[0] == 2
    # A device holds its rows of the similarities, never all of them.
    sizes = re.findall(r"f32\[(?:1,)?(\d+),96\]", program.as_text())
    assert sizes and max(int(size) for size in sizes) == 12


@pytest.mark.parametrize("choice", ["form", "stop_gradient", "negatives"])
def test_unknown_choice(choice):
    with pytest.raises(ValueError, match="choose one of"):
        matching_loss(*sides(), MASK, **{choice: "l3"})
