"""The linear probe: which phoneme a frame has, and what least squares make of frames."""

from __future__ import annotations

import flax.linen as nn
import jax
import numpy as np
import pytest

from maestro_jax.espeak import Phoneme
from maestro_jax.evaluation.phoneme_probe import (
    LAYERS,
    frame_features,
    frame_phonemes,
    linear_probe,
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

    frontend, subsampling = Frontend(), Subsampling()

    def log_mel(self, audio, lengths):
        count = self.frontend.frame_count(audio.shape[1])
        windows = np.arange(count)[:, None] * 160 + np.arange(400)
        loudness = jax.numpy.abs(audio[:, windows].astype(float)).mean(-1, keepdims=True)
        return loudness, jax.numpy.maximum(0, 1 + (lengths - 400) // 160)

    def subsample(self, mel, lengths):
        count = -(-mel.shape[1] // 4)
        mask = jax.numpy.arange(count) < (-(-lengths // 4))[:, None]
        return mel[:, ::4], mask

    def encode_speech(self, features, mask, language):
        return 2 * features

    def encode_shared(self, features, mask, target, language):
        return features + 1


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
    assert tuple(found) == LAYERS
    assert {len(values) for values in found.values()} == {sum(map(len, labels))} == {4 + 0 + 8}
    expected = [
        np.abs(each.audio[start : start + 400].astype(float)).mean()
        for each, own in zip(spoken, labels, strict=True)
        for start in range(0, 640 * len(own), 640)
    ]
    np.testing.assert_allclose(found["speech encoder"][:, 0], 2 * np.array(expected), rtol=1e-5)
    np.testing.assert_allclose(found["log-mel"][:, 0], expected, rtol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_what_is_linear_is_read_and_noise_is_not(scale):
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(5, 16))
    labels = rng.integers(0, 5, 3000)
    names = np.array(["", "a", "b", "c", "d"])[labels]
    features = scale * (directions[labels] + 0.1 * rng.normal(size=(3000, 16)) + 3.0)
    found = linear_probe(
        features[:2000].astype(np.float32), names[:2000], features[2000:], names[2000:]
    )
    assert found.share == 1.0 and (found.frames, found.phonemes) == (1000, 5)
    assert found.majority == pytest.approx(
        np.mean(labels[2000:] == np.bincount(labels[:2000]).argmax())
    )
    noise = rng.normal(size=(3000, 16))
    blind = linear_probe(noise[:2000], names[:2000], noise[2000:], names[2000:])
    assert blind.share < 0.27
    # A phoneme that training does not have cannot be named.
    unknown = linear_probe(features[:2000], names[:2000], features[2000:], ["x"] * 1000)
    assert unknown.share == 0.0
