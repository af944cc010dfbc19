"""The linear probe: which phoneme a frame has, and what a linear classifier makes of frames."""

from __future__ import annotations

import dataclasses
import types

import flax.linen as nn
import jax
import numpy as np
import pytest

from maestro_jax.espeak import Phoneme
from maestro_jax.evaluation.self_supervision import (
    LOG_MEL,
    Accuracy,
    best_layer,
    frame_features,
    frame_phonemes,
    layers,
    linear_probe,
    probe_encoder,
)
from maestro_jax.minivox.corpus import Example


class Encoder(nn.Module):
    """Frames of 40 ms as a model has them, of which each layer sees the loudness."""

    class Frontend:
        window, hop = 400, 160

        def frame_count(self, samples):
            return max(0, 1 + (samples - 400) // 160)

    class Subsampling:
        factor = 4

        def frame_count(self, frames):
            return -(-frames // 4)

    class Blocks:
        """Each block multiplies and adds."""

        def __init__(self, layers, factor, offset):
            self.stack = types.SimpleNamespace(layers=layers)
            self.factor, self.offset = factor, offset

        def __call__(self, x, *_, intermediate_layer):
            values = [x]
            for _ in range(self.stack.layers):
                values.append(self.factor * values[-1] + self.offset)
            return values[-1], values[intermediate_layer]

    frontend, subsampling = Frontend(), Subsampling()

    # Flax would take what can be called, and is no property, for a method.
    @property
    def speech_encoder(self):
        return self.Blocks(2, 2, 0)

    @property
    def shared_encoder(self):
        return self.Blocks(1, 1, 1)

    def log_mel(self, audio, lengths):
        count = self.frontend.frame_count(audio.shape[1])
        windows = np.arange(count)[:, None] * 160 + np.arange(400)
        loudness = jax.numpy.abs(audio[:, windows].astype(float)).mean(-1, keepdims=True)
        return loudness, jax.numpy.maximum(0, 1 + (lengths - 400) // 160)

    def subsample(self, mel, lengths):
        count = -(-mel.shape[1] // 4)
        mask = jax.numpy.arange(count) < (-(-lengths // 4))[:, None]
        return mel[:, ::4], mask


def example(audio, *phonemes):
    begins = np.cumsum([0, *(length for _, length in phonemes)]).tolist()
    timed = [
        Phoneme(symbol, begin, begin + length)
        for (symbol, length), begin in zip(phonemes, begins, strict=False)
    ]
    return Example("x", audio, "", "", "", "en", "", tuple(timed))


def test_a_frame_has_the_phoneme_at_its_centre():
    # Frame i covers 640 i ... 640 i + 880, and its centre is 640 i + 440.
    spoken = example(np.zeros(2800, np.int16), ("", 441), ("a", 640), ("b", 639), ("c", 1080))
    assert frame_phonemes(spoken, Encoder()) == ["", "a", "c", "c"]
    assert frame_phonemes(example(np.zeros(100, np.int16), ("a", 100)), Encoder()) == []


def test_features_are_those_of_the_frames_that_are_there():
    rng = np.random.default_rng(0)
    lengths = [2800, 399, 5000]
    spoken = [example(rng.integers(0, 999, n).astype(np.int16), ("a", n)) for n in lengths]
    found = frame_features(Encoder(), {}, spoken, samples=6000, batch=2)
    labels = [frame_phonemes(each, Encoder()) for each in spoken]
    assert tuple(found) == layers(Encoder())
    assert layers(Encoder()) == (LOG_MEL, "speech 1", "speech 2", "shared 1")
    assert {len(values) for values in found.values()} == {sum(map(len, labels))} == {4 + 0 + 8}
    expected = [
        np.abs(each.audio[start : start + 400].astype(float)).mean()
        for each, own in zip(spoken, labels, strict=True)
        for start in range(0, 640 * len(own), 640)
    ]
    for layer, value in {
        LOG_MEL: np.array(expected),
        "speech 1": 2 * np.array(expected),
        "speech 2": 4 * np.array(expected),
        "shared 1": 4 * np.array(expected) + 1,
    }.items():
        np.testing.assert_allclose(found[layer][:, 0], value, rtol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_what_is_linear_is_read_and_noise_is_not(scale):
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(5, 16))
    labels = rng.integers(0, 5, 3000)
    names = np.array(["", "a", "b", "c", "d"])[labels]
    features = scale * (directions[labels] + 0.1 * rng.normal(size=(3000, 16)) + 3.0)
    [named] = linear_probe(features[:2000].astype(np.float32), names[:2000], [features[2000:]])
    np.testing.assert_array_equal(named, names[2000:])
    noise = rng.normal(size=(3000, 16))
    fitted, unheard = linear_probe(noise[:2000], names[:2000], [noise[:2000], noise[2000:]])
    assert np.mean(fitted == names[:2000]) < 0.4
    assert np.mean(unheard == names[2000:]) < 0.27


def test_weights_are_those_of_the_least_cross_entropy():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(400, 3))
    labels = (x @ [[2, 0], [0, 1], [0, 0]] + 0.8 * rng.normal(size=(400, 2))).argmax(1)
    [named] = linear_probe(x, np.array(["a", "b"])[labels], [x])
    # Of two classes the classifier is logistic regression on the difference of their weights, whose
    # penalty is half: Newton's method in float64.
    z = np.concatenate([(x - x.mean(0)) / x.std(0), np.ones((400, 1))], 1)
    penalty = 0.5 * 1e-4 * np.diag([1.0, 1.0, 1.0, 0.0])
    weights = np.zeros(4)
    for _ in range(30):
        share = 1 / (1 + np.exp(-z @ weights))
        gradient = z.T @ (share - labels) / 400 + 2 * penalty @ weights
        curvature = (z * (share * (1 - share))[:, None]).T @ z / 400 + 2 * penalty
        weights -= np.linalg.solve(curvature, gradient)
    sure = np.abs(z @ weights) > 0.02
    assert sure.mean() > 0.95
    np.testing.assert_array_equal((named == "b")[sure], (z @ weights > 0)[sure])


def test_every_layer_is_judged_and_validation_chooses():
    rng = np.random.default_rng(0)

    def spoken(count):
        """Loud and soft stretches of two frames each."""
        found = []
        for _ in range(count):
            loud = rng.integers(0, 2, 6)
            scale = np.repeat(np.where(loud, 1000, 30), 1280)
            audio = (scale * rng.normal(size=len(scale))).astype(np.int16)
            found.append(example(audio, *((("soft", "loud")[each], 1280) for each in loud)))
        return found

    train, validation, test = spoken(40), spoken(10), spoken(20)
    test.append(example(np.zeros(6400, np.int16), ("never", 6400)))
    probes = probe_encoder(Encoder(), {}, train, validation, test, samples=8000)
    assert tuple(probes) == layers(Encoder())
    unknown = len(frame_phonemes(test[-1], Encoder()))
    for each in probes.values():
        assert each.validation > 0.95
        assert each.frames == sum(len(frame_phonemes(one, Encoder())) for one in test)
        # A phoneme that training does not have cannot be named.
        assert 0.9 < each.share <= 1 - unknown / each.frames
        assert 0.3 < each.majority < 0.7 and each.phonemes == 2
    some = Accuracy(validation=0.5, share=0.9, majority=0.1, frames=9, phonemes=2)
    better = dataclasses.replace(some, validation=0.6, share=0.2)
    top = dataclasses.replace(some, validation=0.9)
    assert best_layer({LOG_MEL: top, "speech 1": some, "shared 1": better}) == "shared 1"
