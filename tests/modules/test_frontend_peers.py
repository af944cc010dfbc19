"""Log-mel features against kaldi-native-fbank and torchaudio, with the same settings.

make peers && build/peers/bin/python -m pytest -m peers tests/modules/test_frontend_peers.py
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from maestro_jax.modules.frontend import LogMelFrontend

pytestmark = pytest.mark.peers

LOADER = Path(__file__).parents[2] / "benchmarks" / "torchaudio_beside_cpu_torch.py"
KALDI_FLOOR = float(np.finfo(np.float32).eps)
RATE = 16_000


def sounds() -> dict[str, np.ndarray]:
    """A second each, on the int16 scale."""
    rng = np.random.default_rng(0)
    time = np.arange(RATE) / RATE
    tones = sum(np.sin(2 * np.pi * f * time) for f in (110.0, 440.0, 1000.0, 3300.0))
    sweep = np.sin(2 * np.pi * (50 * time + 3900 * time**2)) * (0.01 + time)
    return {
        "noise": 3000 * rng.normal(size=RATE),
        "tones over faint noise": 2000 * tones + 2 * rng.normal(size=RATE),
        "sweep with an offset": 9000 * sweep + 500 + 20 * rng.normal(size=RATE),
    }


SOUNDS = {name: np.round(sound).astype(np.int16) for name, sound in sounds().items()}


def ours(sound: np.ndarray, **settings) -> np.ndarray:
    frontend = LogMelFrontend(normalize=False, **settings)
    features, lengths = frontend.apply({}, sound[None], np.array([len(sound)]))
    return np.asarray(features[0, : int(lengths[0])])


@pytest.mark.parametrize("sound", SOUNDS)
@pytest.mark.parametrize("preemphasis", [0.97, 0.0])
@pytest.mark.parametrize("remove_offset", [True, False])
@pytest.mark.parametrize("shape", ["hann", "hanning", "povey"])
def test_kaldi(sound, shape, remove_offset, preemphasis) -> None:
    knf = pytest.importorskip(
        "kaldi_native_fbank", reason="the `peers` extra is not here: make peers"
    )
    options = knf.FbankOptions()
    options.frame_opts.dither = 0.0
    options.frame_opts.window_type = shape
    options.frame_opts.remove_dc_offset = remove_offset
    options.frame_opts.preemph_coeff = preemphasis
    options.mel_opts.num_bins = 80
    options.mel_opts.low_freq = 20.0
    options.mel_opts.high_freq = 8000.0
    fbank = knf.OnlineFbank(options)
    fbank.accept_waveform(RATE, SOUNDS[sound].astype(np.float32).tolist())
    fbank.input_finished()
    expected = np.array([fbank.get_frame(i) for i in range(fbank.num_frames_ready)])
    found = ours(
        SOUNDS[sound],
        window_shape=shape,
        remove_offset=remove_offset,
        preemphasis=preemphasis,
        floor=KALDI_FLOOR,
    )
    assert found.shape == expected.shape == (98, 80)
    difference = np.abs(found - expected)
    # Float32 rounds in both transforms: what is far below a frame's loudest bin is made of it.
    loud = expected > expected.max(axis=1, keepdims=True) - np.log(10.0) * 7
    print(f"largest difference {difference[loud].max():.1e} nats, anywhere {difference.max():.1e}")
    np.testing.assert_allclose(found[loud], expected[loud], atol=1e-3)
    assert loud.mean() > 0.5


@pytest.mark.parametrize("sound", SOUNDS)
def test_our_defaults_are_torchaudio_s_spectrogram_under_htk_s_mel_scale(sound) -> None:
    """Without offset and pre-emphasis, which torchaudio's transform does not have."""
    spec = importlib.util.spec_from_file_location("torchaudio_beside_cpu_torch", LOADER)
    loader = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loader)
    try:
        torchaudio = loader.load_torchaudio()
    except ImportError as error:
        pytest.skip(f"the `peers` extra is not here: {error}")
    import torch

    found = ours(SOUNDS[sound], remove_offset=False, preemphasis=0.0)
    frames = np.lib.stride_tricks.sliding_window_view(SOUNDS[sound], 400)[::160]
    window = torch.hann_window(400, periodic=True)
    framed = torch.from_numpy(frames.astype(np.float32)) * window
    power = torch.fft.rfft(framed, n=512).abs() ** 2
    # HTK's mel scale in hertz: torchaudio's triangles are linear in frequency, ours in mel.
    filters = torchaudio.functional.melscale_fbanks(257, 20.0, 8000.0, 80, RATE, None, "htk")
    expected = torch.log(torch.clamp(power @ filters, min=1.0)).numpy()
    # Two ways to draw a triangle: a fifth of a decibel at most.
    np.testing.assert_allclose(found, expected, atol=0.05)
