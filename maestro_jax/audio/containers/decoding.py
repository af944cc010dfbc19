"""Pieces of files to samples, by the decoder that reads all there is of each container.

libsndfile reads most. miniaudio reads FLAC past a wrong count and damage, and Ogg Vorbis faster;
PyAV, if it is there, what neither knows.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile

from maestro_jax.audio import vorbis
from maestro_jax.audio.containers import media
from maestro_jax.audio.containers.layout import Finding, Layout, Piece

try:
    import miniaudio
except ImportError:  # There is no wheel for every machine.
    miniaudio = None

_EXACT, _ROUGH = 0.01, 0.1
"""Seconds by which a header may be wrong before it is told: where samples lie one by one, and where
a coding has frames, a delay, or a frame that holds the index, all of which may be counted."""
_ONE_BY_ONE = ("PCM", "FLOAT", "DOUBLE", "ULAW", "ALAW")
# Beyond which a header is damaged: no speech is left, or hours of noise come out of a second.
_LOWEST_RATE, _HIGHEST_RATE = 2000, 1_000_000
_MOST_CHANNELS = 64
_BLOCK = 4096
# No header is believed that promises more samples than so many for each byte.
_MOST_PER_BYTE = 100


class _Memory(io.BytesIO):
    """A file in memory that stays where it is when a damaged header leads before its beginning.

    soundfile's own callback would print a traceback.
    """

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """As that of the base class, but for errors."""
        try:
            return super().seek(offset, whence)
        except (ValueError, OverflowError):
            return self.tell()


class Decoded(NamedTuple):
    """Samples of a piece.

    Attributes:
        samples: float32 `[samples, channels]`.
        rate: Samples a second.
        subtype: How they were coded, in the words of libsndfile.
        expected: How many there should be; 0 if nothing says.
        findings: What is wrong with them.
    """

    samples: np.ndarray
    rate: int
    subtype: str
    expected: int = 0
    findings: tuple[Finding, ...] = ()


def decode(path: Path, layout: Layout, piece: Piece) -> Decoded:
    """Decodes one piece of a file, and compares it with what the file states.

    Args:
        path: The file.
        layout: How it is built.
        piece: One of its pieces.

    Returns:
        All samples that are there.

    Raises:
        OSError: The file cannot be opened.
        ValueError: It cannot be decoded; the message says why.
    """
    found = _decode(path, piece.format or layout.format, piece)
    if not _LOWEST_RATE <= found.rate <= _HIGHEST_RATE:
        raise ValueError(f"its header states {found.rate} samples a second")
    if found.samples.shape[1] > _MOST_CHANNELS:
        raise ValueError(f"its header states {found.samples.shape[1]} channels")
    length, rate = len(found.samples), found.rate
    expected = found.expected
    if piece.present:
        # What is stated in bytes or frames, in samples.
        expected = round(length * piece.stated / piece.present) if piece.stated else 0
    grace = _EXACT if found.subtype.startswith(_ONE_BY_ONE) else _ROUGH
    missing = (expected - length) / rate if expected else 0.0
    said: tuple[Finding, ...] = ()
    if any(finding.kind == "cut short" for finding in found.findings):
        pass
    elif missing > grace:
        detail = f"{missing:.2f} of {expected / rate:.2f} seconds missing"
        said = (Finding("cut short", detail),)
    elif missing < -grace:
        detail = f"its header states {expected / rate:.2f} seconds, {length / rate:.2f} are there"
        said = (Finding("header mismatch", detail),)
    return found._replace(findings=(*found.findings, *said))


def _decode(path: Path, format_: str, piece: Piece) -> Decoded:
    if format_ == "flac" and miniaudio is not None:
        found = _flac(path, piece)
        if found is not None:
            return found
    if format_ == "ogg" and piece.content is None:
        decoded = vorbis.decode(path)
        if decoded is not None:
            return Decoded(*decoded, "VORBIS")
    if media.format_of(_beginning(path, piece)):
        return _media(path, piece)
    try:
        if not format_ and path.suffix.lower() == ".mp3":
            # libsndfile goes by the name then, and libmpg123 complains on the terminal.
            raise ValueError("there are no frames of MPEG audio in it")
        return _libsndfile(path, piece)
    except ValueError:
        if not media.is_installed():
            raise
        try:
            return _media(path, piece)
        except ValueError:
            pass
        # What libsndfile says of its own formats.
        raise


def _beginning(path: Path, piece: Piece) -> bytes:
    if piece.content is not None:
        return piece.content[:32]
    with path.open("rb") as file:
        return file.read(32)


def _flac(path: Path, piece: Piece) -> Decoded | None:
    try:
        if piece.content is None:
            found = miniaudio.flac_read_file_f32(str(path))
        else:
            found = miniaudio.flac_read_f32(piece.content)
    except miniaudio.MiniaudioError:
        return None
    if not len(found.samples):
        # libsndfile tells why.
        return None
    samples = np.frombuffer(found.samples, np.float32).reshape(-1, found.nchannels)
    # Of the description of the stream, which is the first block.
    bits = (int.from_bytes(_beginning(path, piece)[20:22], "big") >> 4 & 31) + 1
    return Decoded(samples, found.sample_rate, f"PCM_{bits}", piece.frames or 0)


def _media(path: Path, piece: Piece) -> Decoded:
    samples, rate, findings = media.decode(piece.content if piece.content else str(path))
    return Decoded(samples, rate, "", 0, findings)


def _libsndfile(path: Path, piece: Piece) -> Decoded:
    source = path if piece.content is None else _Memory(piece.content)
    size = path.stat().st_size if piece.content is None else len(piece.content)
    try:
        # By name: a Python file would be asked for every few kilobytes.
        with soundfile.SoundFile(source) as file:
            expected = file.frames if piece.frames is None else max(piece.frames, 0)
            rate = file.samplerate
            if file.seekable() and file.frames <= size * _MOST_PER_BYTE:
                try:
                    samples = file.read(dtype="float32", always_2d=True)
                    return Decoded(samples, rate, file.subtype, expected)
                except soundfile.LibsndfileError:
                    file.seek(0)
            samples = _up_to_damage(file)
            if file.frames > size * _MOST_PER_BYTE:
                expected = 0
            return Decoded(samples, rate, file.subtype, expected)
    except soundfile.LibsndfileError as error:
        # Without the name of the file, which is not always what the user knows it by.
        raise ValueError(error.error_string) from error
    except (RuntimeError, TypeError) as error:
        raise ValueError(str(error)) from error


def _up_to_damage(file: soundfile.SoundFile) -> np.ndarray:
    """The samples before the first that cannot be decoded."""
    blocks = [np.zeros((0, file.channels), np.float32)]
    try:
        while len(block := file.read(_BLOCK, dtype="float32", always_2d=True)):
            blocks.append(block)
    except soundfile.LibsndfileError:
        pass
    return np.concatenate(blocks)
