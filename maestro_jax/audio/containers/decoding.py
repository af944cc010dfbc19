"""Decodes pieces of files, each with the decoder that reads all of it.

libsndfile decodes most formats; miniaudio decodes FLAC with a wrong count or damage, and Ogg Vorbis
faster; PyAV, if it is installed, decodes the rest.
"""

from __future__ import annotations

import io
import os
import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile

from maestro_jax.audio.containers import media
from maestro_jax.audio.containers.layout import Finding, Layout, Piece

try:
    import miniaudio
except ImportError:  # There is no wheel for every machine.
    miniaudio = None

_EXACT, _ROUGH = 0.01, 0.1
"""Tolerated errors of a header, in seconds: of uncompressed samples, and of codecs, whose headers
may or may not count the delay, the last frame or the frame of the index."""
_ONE_BY_ONE = ("PCM", "FLOAT", "DOUBLE", "ULAW", "ALAW")
# Rates outside are those of damaged headers, which would turn a second into hours of noise.
_LOWEST_RATE, _HIGHEST_RATE = 2000, 1_000_000
_MOST_CHANNELS = 64
_BLOCK = 4096
# Largest plausible number of samples per byte; headers that state more are ignored.
_MOST_PER_BYTE = 100
# A first page of one segment holds the identification header: magic, version, channels, rate.
_VORBIS_HEADER = struct.Struct("<4s24x7sIBI")
_LONGEST_PAGE = 65_307
# Beginning of a page: magic, version, flags, number of samples up to its end.
_PAGE = struct.Struct("<4sBBq")
# Vorbis has its own order of more channels.
_MOST_VORBIS_CHANNELS = 2


class _Memory(io.BytesIO):
    """A file in memory that ignores seeks to before its beginning, as damaged headers cause.

    soundfile's own callback would print a traceback.
    """

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Seeks as the base class does, but ignores errors."""
        try:
            return super().seek(offset, whence)
        except (ValueError, OverflowError):
            return self.tell()


class Decoded(NamedTuple):
    """Samples of a piece.

    Attributes:
        samples: float32 `[samples, channels]`.
        rate: Samples per second.
        subtype: Coding, as libsndfile calls it.
        expected: Expected number of samples; 0 if unknown.
        findings: Problems of the samples.
    """

    samples: np.ndarray
    rate: int
    subtype: str
    expected: int = 0
    findings: tuple[Finding, ...] = ()


def decode(path: Path, layout: Layout, piece: Piece) -> Decoded:
    """Decodes one piece of a file, and compares its length with what the file states.

    Args:
        path: The file.
        layout: Its layout.
        piece: One of its pieces.

    Returns:
        All samples that are present.

    Raises:
        OSError: If the file cannot be opened.
        ValueError: If it cannot be decoded; the message says why.
    """
    decoded = _decode(path, piece.format or layout.format, piece)
    if not _LOWEST_RATE <= decoded.rate <= _HIGHEST_RATE:
        raise ValueError(f"its header states {decoded.rate} samples a second")
    if decoded.samples.shape[1] > _MOST_CHANNELS:
        raise ValueError(f"its header states {decoded.samples.shape[1]} channels")
    length, rate = len(decoded.samples), decoded.rate
    expected = decoded.expected
    if piece.present:
        # Converts bytes or frames to samples.
        expected = round(length * piece.stated / piece.present) if piece.stated else 0
    grace = _EXACT if decoded.subtype.startswith(_ONE_BY_ONE) else _ROUGH
    missing = (expected - length) / rate if expected else 0.0
    mismatch: tuple[Finding, ...] = ()
    if any(finding.kind == "cut short" for finding in decoded.findings):
        pass
    elif missing > grace:
        detail = f"{missing:.2f} of {expected / rate:.2f} seconds missing"
        mismatch = (Finding("cut short", detail),)
    elif missing < -grace:
        detail = f"its header states {expected / rate:.2f} seconds, {length / rate:.2f} are there"
        mismatch = (Finding("header mismatch", detail),)
    return decoded._replace(findings=(*decoded.findings, *mismatch))


def _decode(path: Path, format_: str, piece: Piece) -> Decoded:
    if format_ == "flac" and miniaudio is not None:
        flac = _flac(path, piece)
        if flac is not None:
            return flac
    if format_ == "ogg" and piece.content is None:
        decoded = decode_vorbis(path)
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
        # The message of libsndfile, which knows its own formats.
        raise


def _beginning(path: Path, piece: Piece) -> bytes:
    if piece.content is not None:
        return piece.content[:32]
    with path.open("rb") as file:
        return file.read(32)


def _flac(path: Path, piece: Piece) -> Decoded | None:
    try:
        if piece.content is None:
            decoded = miniaudio.flac_read_file_f32(str(path))
        else:
            decoded = miniaudio.flac_read_f32(piece.content)
    except miniaudio.MiniaudioError:
        return None
    if not len(decoded.samples):
        # libsndfile knows why.
        return None
    samples = np.frombuffer(decoded.samples, np.float32).reshape(-1, decoded.nchannels)
    # Bits per sample, from the stream description in the first block.
    bits = (int.from_bytes(_beginning(path, piece)[20:22], "big") >> 4 & 31) + 1
    return Decoded(samples, decoded.sample_rate, f"PCM_{bits}", piece.frames or 0)


def _media(path: Path, piece: Piece) -> Decoded:
    samples, rate, findings = media.decode(piece.content if piece.content else str(path))
    return Decoded(samples, rate, "", 0, findings)


def _libsndfile(path: Path, piece: Piece) -> Decoded:
    source = path if piece.content is None else _Memory(piece.content)
    size = path.stat().st_size if piece.content is None else len(piece.content)
    try:
        # By name: libsndfile would call a Python file object every few kilobytes.
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
    """Reads the samples before the first that cannot be decoded."""
    blocks = [np.zeros((0, file.channels), np.float32)]
    try:
        while len(block := file.read(_BLOCK, dtype="float32", always_2d=True)):
            blocks.append(block)
    except soundfile.LibsndfileError:
        pass
    return np.concatenate(blocks)


def decode_vorbis(path: Path) -> tuple[np.ndarray, int] | None:
    """Decodes a whole Ogg Vorbis file, the format of VoxPopuli, 1.5 times as fast as libsndfile.

    miniaudio is optional. Its samples differ from those of libsndfile by less than 1e-6.

    Args:
        path: A file of any format.

    Returns:
        float32 `[samples, channels]` and samples per second; None if another decoder must try: the
        file is not Ogg Vorbis, has more channels or is damaged, or miniaudio is not installed.
    """
    if miniaudio is None:
        return None
    with path.open("rb") as file:
        header = file.read(_VORBIS_HEADER.size)
        if len(header) < _VORBIS_HEADER.size:
            return None
        page, name, _, channels, rate = _VORBIS_HEADER.unpack(header)
        if (page, name) != (b"OggS", b"\x01vorbis") or not 1 <= channels <= _MOST_VORBIS_CHANNELS:
            return None
        file.seek(max(file.seek(0, os.SEEK_END) - _LONGEST_PAGE, 0))
        end = file.read()
    last_page = end.rfind(b"OggS")
    if not 0 <= last_page <= len(end) - _PAGE.size:
        return None
    length = _PAGE.unpack_from(end, last_page)[-1]
    try:
        decoded = miniaudio.decode_file(
            str(path),
            output_format=miniaudio.SampleFormat.FLOAT32,
            nchannels=channels,
            sample_rate=rate,
        )
    except miniaudio.MiniaudioError:
        return None
    samples = np.frombuffer(decoded.samples, np.float32).reshape(-1, channels)
    return (samples, rate) if len(samples) == length else None
