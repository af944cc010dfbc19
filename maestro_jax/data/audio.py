"""Audio files to the 16 kHz mono waveform that the models read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np
import soundfile
import soxr

from maestro_jax.data import vorbis
from maestro_jax.data.streams import SAMPLE_RATE
from maestro_jax.errors import UserError

_KNOWN_FORMATS = "wav, flac, ogg, opus or mp3"
# Seconds: headers of mp3 files count what the encoder put before and after the audio.
_MAY_BE_MISSING = 0.2


class EmptyAudioError(UserError):
    """There is a file, and it can be decoded, but there are no samples to read."""


def read_audio(path: str | Path, spans: Sequence[tuple[float, float]] | None = None) -> np.ndarray:
    """Reads a wav, flac, ogg, opus or mp3 file of any rate, mono or with several channels.

    Channels are averaged; other rates than 16 kHz are converted by `resample`.

    Args:
        path: The file.
        spans: Begin and end of the pieces to read, in seconds, one after the other; None for the
            whole file. What lies beyond the end of the file is left out.

    Returns:
        float32 `[samples]` at 16 kHz, within about -1 to 1; ``ceil(frames * 16000 / rate)``
        samples.

    Raises:
        UserError: The file is missing, a directory, unreadable, empty, damaged in the middle, or
            holds no finite audio.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        raise UserError(f"{path} is a directory; name an audio file ({_KNOWN_FORMATS}).")
    if not path.exists():
        raise UserError(f"{path} does not exist; name an audio file ({_KNOWN_FORMATS}).")
    if not path.is_file() or path.stat().st_size == 0:
        raise UserError(f"{path} is empty; name an audio file ({_KNOWN_FORMATS}).")
    try:
        if spans is None:
            samples, rate = _read_whole(path)
        else:
            with path.open("rb") as file:
                samples, rate = _read_spans(file, spans)
    except OSError as error:
        raise UserError(f"{path} cannot be opened: {error.strerror or error}.") from error
    except (soundfile.LibsndfileError, RuntimeError, TypeError, ValueError) as error:
        if _is_shortened(path):
            raise UserError(
                f"{path} is a sphere file compressed by shorten, which is not read; put what "
                f"`sph2pipe -p -f sph {path.name} NEW` writes in its place."
            ) from error
        reason = str(error).rstrip(".")
        raise UserError(
            f"{path} cannot be read as audio ({reason}); convert it to {_KNOWN_FORMATS}."
        ) from error
    if samples.shape[0] == 0:
        nothing = "no samples" if spans is None else "no samples where they were looked for"
        raise EmptyAudioError(f"{path} holds {nothing}: its audio has zero length.")
    # A mean over one channel would take a third of the time.
    samples = resample(samples[:, 0] if samples.shape[1] == 1 else samples.mean(axis=1), rate)
    # What is not finite before the filter is not finite after it, where there is less to look at.
    if not np.isfinite(samples).all():
        raise UserError(
            f"{path} holds samples that are not finite numbers; write it as 16-bit audio."
        )
    return samples


def _is_shortened(path: Path) -> bool:
    """Whether the header of a NIST sphere file says that its samples are compressed by shorten."""
    with path.open("rb") as file:
        header = file.read(1024)
    return header.startswith(b"NIST_1A") and b"shorten" in header


def _read_whole(path: Path) -> tuple[np.ndarray, int]:
    """All samples of a file, `[frames, channels]`, and its rate."""
    decoded = vorbis.decode(path)
    if decoded is not None:
        return decoded
    # By name: a Python file would be asked for every few kilobytes.
    with soundfile.SoundFile(path) as file:
        samples = file.read(dtype="float32", always_2d=True)
        # libsndfile stops without a word where an Ogg stream is damaged.
        missing = (file.frames - len(samples)) / file.samplerate
        if missing > _MAY_BE_MISSING:
            seconds = file.frames / file.samplerate
            raise ValueError(f"decoding ends {missing:.1f} s before the end of its {seconds:.1f} s")
        return samples, file.samplerate


def _read_spans(file: IO[bytes], spans: Sequence[tuple[float, float]]) -> tuple[np.ndarray, int]:
    pieces, rate = [], SAMPLE_RATE
    for begin, end in spans:
        # Opened for each piece: in Ogg Vorbis, libsndfile's second seek misses by 100s of samples.
        file.seek(0)
        with soundfile.SoundFile(file) as opened:
            rate = opened.samplerate
            # An end of infinity is that of the file.
            first, last = (round(min(at * rate, opened.frames)) for at in (begin, end))
            if last > first:
                opened.seek(first)
                pieces.append(opened.read(last - first, dtype="float32", always_2d=True))
    return np.concatenate(pieces) if pieces else np.zeros((0, 1), np.float32), rate


def resample(samples: np.ndarray, rate: int, target_rate: int = SAMPLE_RATE) -> np.ndarray:
    """Converts a waveform to another sampling rate, by the band-limited filter of libsoxr.

    Args:
        samples: float `[samples]` at ``rate``.
        rate: Samples a second of the input.
        target_rate: Samples a second of the output.

    Returns:
        float32 `[ceil(samples * target_rate / rate)]`.
    """
    samples = np.ascontiguousarray(samples, np.float32)
    if rate == target_rate:
        return samples
    converted = soxr.resample(samples, rate, target_rate, quality="HQ")
    length = -(-len(samples) * target_rate // rate)
    # libsoxr rounds to the nearest number of samples.
    return np.pad(converted, (0, max(length - len(converted), 0)))[:length]


def to_int16(samples: np.ndarray) -> np.ndarray:
    """Scales a float waveform `[samples]` within -1 to 1 to int16, as batches carry audio."""
    samples = np.asarray(samples)
    # A power of two and 16 bits: float32 loses nothing by it, and takes half the time.
    scaled = (
        samples * samples.dtype.type(32768)
        if samples.dtype == np.float32
        else (samples.astype(np.float64) * 32768.0)
    )
    return np.clip(np.rint(scaled, out=scaled), -32768, 32767, out=scaled).astype(np.int16)
