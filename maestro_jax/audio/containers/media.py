"""Decodes what libsndfile does not read, by PyAV: mp4, m4a, webm, aac and all that FFmpeg reads.

PyAV is the extra `media`; its wheels include FFmpeg.
"""

from __future__ import annotations

import io
import struct
from typing import IO, Any

import numpy as np

from maestro_jax.audio.containers.layout import Finding

# Position, bytes, and the name of the format.
_MAGICS = (
    (4, b"ftyp", "mp4"),
    (4, b"moov", "mp4"),
    (4, b"mdat", "mp4"),
    (0, b"\x1a\x45\xdf\xa3", "webm or Matroska"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "wma"),
    (0, b"#!AMR", "amr"),
    (0, b"FLV\x01", "flv"),
    (0, b"wvpk", "WavPack"),
    (0, b"MAC ", "Monkey's Audio"),
    (0, b"TTA1", "TTA"),
    (0, b"\x0b\x77", "AC-3"),
    (8, b"AVI ", "avi"),
)
# Seconds by which a header may exceed the audio: it is rounded, and includes other tracks.
_TOLERANCE = 0.3
# Number of frames in a row that cannot be chance.
_LEAST_FRAMES = 4
# Rates and channels are those of the first frame.
_Decoded = tuple[np.ndarray, int, tuple[Finding, ...]]


def format_of(beginning: bytes) -> str:
    """Returns the container that only PyAV reads, by a file's first bytes; empty for others."""
    for at, magic, name in _MAGICS:
        if beginning.startswith(magic, at):
            return name
    # AAC in ADTS frames: as MPEG audio, with layer 0.
    if len(beginning) > 1 and beginning[0] == 0xFF and beginning[1] & 0xF6 == 0xF0:
        return "aac"
    return ""


def is_adts(content: bytes, at: int) -> bool:
    """Tells whether several frames of AAC (ADTS) follow one another from `at` on."""
    for _ in range(_LEAST_FRAMES):
        head = content[at : at + 6]
        if len(head) < 6 or head[0] != 0xFF or head[1] & 0xF6 != 0xF0:
            return False
        # 13 bits; the length includes the header.
        length = int.from_bytes(head[3:6], "big") >> 5 & 0x1FFF
        if length < 7 or head[2] >> 2 & 15 > 12:
            return False
        at += length
    return True


def end_of_mp4(file: IO[bytes], begin: int = 0) -> int:
    """Finds where the boxes of an mp4 file end and something else begins; 0 if nothing does.

    Args:
        file: Open at any place.
        begin: Position of the file in it. Another `ftyp` is the beginning of another file.
    """
    size, at = file.seek(0, io.SEEK_END), begin
    while at + 8 <= size:
        file.seek(at)
        length, name = struct.unpack(">I4s", file.read(8))
        if (name == b"ftyp" and at > begin) or not all(32 <= byte < 127 for byte in name):
            return at
        if length == 1:
            length = int.from_bytes(file.read(8), "big")
        if length < 8:
            # A length of 0 extends to the end of the file.
            return at if length else 0
        at += length
    return 0


def end_of_matroska(file: IO[bytes], begin: int = 0) -> int:
    """Finds where the elements of a webm or Matroska file end; 0 if unknown or at the end.

    Args:
        file: Open at any place.
        begin: Position of the file in it.
    """
    size, at = file.seek(0, io.SEEK_END), begin
    for name in (b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"):
        file.seek(at)
        head = file.read(12)
        # The number of leading zeros gives the number of bytes of the size.
        width = 9 - head[4].bit_length() if len(head) == 12 else 9
        if width > 8 or not head.startswith(name):
            return 0
        length = int.from_bytes(head[4 : 4 + width], "big") & (1 << 7 * width) - 1
        if length == (1 << 7 * width) - 1:
            return 0
        at += 4 + width + length
    return at if at < size else 0


def is_installed() -> bool:
    """Tells whether PyAV is installed."""
    try:
        import av  # noqa: F401
    except ImportError:
        return False
    return True


def decode(source: str | IO[bytes] | bytes) -> _Decoded:
    """Decodes the first track of audio.

    Args:
        source: Path, open file or content.

    Returns:
        float32 `[samples, channels]`, samples per second, and findings.

    Raises:
        ValueError: If there is no audio, none of it can be decoded, or PyAV is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise ValueError("PyAV is not installed") from error

    av.logging.set_level(av.logging.PANIC)
    opened: Any = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        # Files that a playlist names are not opened.
        with av.open(opened, metadata_errors="replace", options=_ONLY_FILES) as container:
            return _decode(container)
    except (av.FFmpegError, OSError) as error:
        raise ValueError(getattr(error, "strerror", None) or str(error)) from error


_ONLY_FILES = {"protocol_whitelist": "file,pipe"}


def _decode(container: Any) -> _Decoded:
    import av

    tracks = container.streams.audio
    if not tracks:
        raise ValueError("it has no track of audio")
    track = tracks[0]
    findings = []
    if len(tracks) > 1:
        detail = f"{len(tracks)} tracks of audio, of which the first is read"
        findings.append(Finding("several tracks", detail))
    pieces: list[np.ndarray] = []
    resampler, rate, channels, broken = None, 0, 1, 0
    for packet in container.demux(track):
        try:
            frames = packet.decode()
        except av.FFmpegError:
            broken += 1
            continue
        for frame in frames:
            if resampler is None:
                rate = frame.sample_rate
                channels = frame.layout.nb_channels
                # Interleaved, since PyAV reads beyond the planes of more than eight channels.
                resampler = av.AudioResampler("flt", frame.layout, rate)
            pieces += [one.to_ndarray() for one in resampler.resample(frame)]
    if resampler is not None:
        pieces += [one.to_ndarray() for one in resampler.resample(None)]
    if not pieces:
        raise ValueError("none of its audio can be decoded" if broken else "its audio is empty")
    samples = np.concatenate(pieces, axis=1).reshape(-1, channels).astype(np.float32, copy=False)
    if broken:
        findings.append(Finding("damaged audio", f"{broken} packets cannot be decoded"))
    stated = _stated_seconds(container, track)
    missing = stated - len(samples) / rate
    if missing > _TOLERANCE:
        detail = f"{missing:.2f} of {stated:.2f} seconds missing"
        findings.append(Finding("cut short", detail))
    return samples, rate, tuple(findings)


def _stated_seconds(container: Any, track: Any) -> float:
    """Returns the duration of the track by the header; 0 if it states none."""
    if track.duration and track.time_base:
        return float(track.duration * track.time_base)
    has_more = len(container.streams) > 1
    return 0.0 if has_more or not container.duration else container.duration / 1e6
