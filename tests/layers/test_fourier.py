"""The power spectrum against NumPy's transform in float64."""

from __future__ import annotations

import numpy as np
import pytest

from maestro_jax.layers.fourier import even_before_odd, power_spectrum


@pytest.mark.parametrize(("samples", "points"), [(3, 4), (8, 8), (25, 32), (400, 512), (512, 512)])
def test_it_is_the_square_of_the_transform(samples: int, points: int) -> None:
    frames = np.random.default_rng(samples).normal(size=(2, 3, samples)).astype(np.float32)
    expected = np.abs(np.fft.rfft(frames.astype(np.float64), n=points)) ** 2
    found = power_spectrum(frames, points)
    in_order = np.moveaxis(even_before_odd(np.moveaxis(expected, -1, 0)), 0, -1)
    np.testing.assert_allclose(found, in_order, atol=2e-6 * expected.max())


def test_a_pure_tone_stands_alone() -> None:
    """What leaks into other bins is rounding: 120 dB below the tone."""
    tone = np.cos(2 * np.pi * 37 * np.arange(512) / 512).astype(np.float32)
    found = np.asarray(power_spectrum(tone, 512), np.float64)
    order = even_before_odd(np.arange(257))
    assert order[found.argmax()] == 37
    np.testing.assert_allclose(found.max(), 256.0**2, rtol=1e-5)
    assert np.sort(found)[-2] < 1e-12 * found.max()
