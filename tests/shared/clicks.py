"""Recordings in which what is lost can be counted: a click a second, in quiet noise."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from maestro_jax.audio.reading import SAMPLE_RATE, Recording, read_recording


def clicking(seconds: float, rate: int = SAMPLE_RATE) -> np.ndarray:
    """Float64 `[samples]` with a click of 20 ms in the middle of each second."""
    samples = np.random.default_rng(0).normal(size=round(seconds * rate)) * 0.01
    click = 0.5 * np.sin(2 * np.pi * 440 * np.arange(rate // 50) / rate)
    for at in np.arange(0.5, seconds, 1.0):
        begin = round(at * rate)
        samples[begin : begin + len(click)] += click[: len(samples) - begin]
    return samples


def clicks(samples: np.ndarray) -> int:
    """How many clicks there are in `[samples]` at 16 kHz."""
    blocks = samples[: len(samples) // 160 * 160].reshape(-1, 160)
    is_loud = np.sqrt(np.mean(blocks.astype(np.float64) ** 2, axis=1)) > 0.1
    return int(np.sum(is_loud[1:] & ~is_loud[:-1]))


def coded(samples: np.ndarray, container: str, rate: int = SAMPLE_RATE, **options: Any) -> bytes:
    """A file of these samples; `container` as in `WAV` or `OGG/OPUS`."""
    name, _, subtype = container.partition("/")
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=name, subtype=subtype or None, **options)
    return file.getvalue()


def wav(
    samples: np.ndarray,
    *,
    riff: int | None = None,
    size: int | None = None,
    channels: int = 1,
    bits: int = 16,
    rate: int = SAMPLE_RATE,
) -> bytes:
    """A mono wav file of 16 bits at 16 kHz, whose header states what it is told to."""
    data = np.rint(samples * 32767).astype("<i2").tobytes()
    form = struct.pack("<HHIIHH", 1, channels, rate, 2 * SAMPLE_RATE, 2, bits)
    body = b"WAVEfmt " + struct.pack("<I", len(form)) + form
    body += b"data" + struct.pack("<I", len(data) if size is None else size) + data
    return b"RIFF" + struct.pack("<I", len(body) if riff is None else riff) + body


def read(path: Path, content: bytes, **options: Any) -> Recording:
    """Writes a file and reads it."""
    path.write_bytes(content)
    return read_recording(path, **options)


def kinds(recording: Recording) -> list[str]:
    """The kinds of what was found."""
    return [finding.kind for finding in recording.findings]
