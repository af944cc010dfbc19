"""The front end against a plain float64 computation, and what padding may not do."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maestro_jax.modules.frontend import ConvSubsampling, LogMelFrontend, mel_filterbank

FRONTEND = LogMelFrontend(normalize=False)


def naive_log_mel(samples: np.ndarray) -> np.ndarray:
    """Frame by frame, with a discrete Fourier transform written out."""
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    bins = np.arange(257)[:, None] * np.arange(512)[None, :]
    transform = np.exp(-2j * np.pi * bins / 512)
    filters = mel_filterbank(80, 512, 16_000, 20.0, 8000.0).astype(np.float64)
    rows = []
    for start in range(0, len(samples) - 399, 160):
        frame = samples[start : start + 400].astype(np.float64)
        frame = frame - frame.mean()
        emphasised = np.concatenate([[0.03 * frame[0]], frame[1:] - 0.97 * frame[:-1]])
        spectrum = transform @ np.pad(emphasised * window, (0, 112))
        rows.append(np.log(np.maximum(np.abs(spectrum) ** 2 @ filters, 1.0)))
    return np.array(rows)


@pytest.fixture(scope="module")
def audio() -> np.ndarray:
    return np.random.default_rng(0).integers(-9000, 9000, (2, 4000)).astype(np.int16)


def test_log_mel_is_its_definition(audio: np.ndarray) -> None:
    features, lengths = FRONTEND.apply({}, audio, np.array([4000, 4000]))
    for row in range(2):
        expected = naive_log_mel(audio[row])
        assert lengths[row] == len(expected)
        np.testing.assert_allclose(features[row], expected, atol=2e-3)


@pytest.mark.parametrize(
    ("samples", "frames"), [(0, 0), (399, 0), (400, 1), (559, 1), (560, 2), (16_000, 98)]
)
def test_frame_count(samples: int, frames: int) -> None:
    assert FRONTEND.frame_count(samples) == frames
    assert FRONTEND.frame_count(jnp.asarray([samples]))[0] == frames


def test_filters_rise_and_fall_between_their_neighbours_centres() -> None:
    filters = mel_filterbank(80, 512, 16_000, 20.0, 8000.0)
    centres = filters.argmax(axis=0)
    assert (np.diff(centres) >= 0).all()
    assert filters.min() >= 0.0 and filters.max() <= 1.0
    # Triangles on the mel scale that overlap by half add up to one between the outer centres.
    np.testing.assert_allclose(filters[centres[0] + 2 : centres[-1] - 2].sum(axis=1), 1, atol=1e-5)


def test_what_stands_in_the_padding_changes_nothing(audio: np.ndarray) -> None:
    frontend = LogMelFrontend()
    lengths = np.array([2500, 0])
    first, _ = frontend.apply({}, audio, lengths)
    longer = np.pad(audio, ((0, 0), (0, 1600)), constant_values=321)
    longer[:, 2500:] = 77
    second, counts = frontend.apply({}, longer, lengths)
    frames = int(counts[0])
    # Mean and variance are float32 sums of numbers near 20, in another order.
    np.testing.assert_allclose(first[0, :frames], second[0, :frames], atol=1e-4)
    assert not np.asarray(first[0, frames:]).any() and not np.asarray(second[1]).any()


def test_integers_and_floats_are_the_same_sound(audio: np.ndarray) -> None:
    lengths = np.array([4000, 4000])
    integer, _ = FRONTEND.apply({}, audio, lengths)
    floating, _ = FRONTEND.apply({}, (audio / 32768.0).astype(np.float32), lengths)
    np.testing.assert_allclose(integer, floating, atol=1e-3)


def test_unknown_windows_are_refused() -> None:
    with pytest.raises(ValueError, match="'hamming'.*hann.*hanning.*povey"):
        LogMelFrontend(window_shape="hamming")


def test_silence_is_finite() -> None:
    features, _ = LogMelFrontend().apply({}, np.zeros((1, 4000), np.int16), np.array([4000]))
    assert np.isfinite(features).all()


def test_spec_augment_only_sets_zeros_and_only_where_asked(audio: np.ndarray) -> None:
    frontend = LogMelFrontend()
    lengths = np.array([4000, 4000])
    clean, _ = frontend.apply({}, audio, lengths)
    rngs = {"specaugment": jax.random.key(0)}
    masked, _ = frontend.apply({}, audio, lengths, augment=np.array([True, False]), rngs=rngs)
    np.testing.assert_array_equal(masked[1], clean[1])
    changed = np.asarray(masked[0] != clean[0])
    assert changed.any() and not np.asarray(masked[0])[changed].any()


@pytest.mark.parametrize("normalize", [False, True])
def test_subsampling_quarters_the_frames_whatever_the_padding(normalize: bool) -> None:
    module = ConvSubsampling((4, 4), normalize)
    features = np.random.default_rng(1).normal(size=(1, 21, 80)).astype(np.float32)
    params = nn.unbox(module.init(jax.random.key(0), features, np.array([21])))
    short, lengths = module.apply(params, features, np.array([21]))
    assert int(lengths[0]) == 6 and short.shape == (1, 6, 80)
    padded = np.pad(features, ((0, 0), (0, 11), (0, 0)))
    long, lengths = module.apply(params, padded, np.array([21]))
    assert int(lengths[0]) == 6
    np.testing.assert_allclose(long[:, :6], short, atol=1e-5 if normalize else 1e-6)
    assert not np.asarray(long[:, 6:]).any()


def test_normalised_features_vary_over_frames_and_not_around_a_mean() -> None:
    module = ConvSubsampling((4, 4), normalize=True)
    features = 5.0 + np.random.default_rng(1).normal(size=(2, 60, 80)).astype(np.float32)
    lengths = np.array([60, 44])
    params = nn.unbox(module.init(jax.random.key(0), features, lengths))
    found, counts = module.apply(params, features, lengths)
    for row, count in zip(np.asarray(found, np.float64), np.asarray(counts), strict=True):
        assert count < found.shape[1] or count == 15
        np.testing.assert_allclose(row[:count].mean(axis=0), 0.0, atol=1e-4)
        deviation = row[:count].std(axis=0)
        # The variance is 1 but for features that hardly vary at all, and for dead ones.
        assert np.all(deviation < 1.0 + 1e-4) and np.median(deviation) > 0.99
