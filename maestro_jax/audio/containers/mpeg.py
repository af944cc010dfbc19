"""Reads MPEG audio: the frames of an mp3 file, its index frame, and tags around and between them.

A stream has no header of its own. An index frame (Xing, Info, VBRI) in the place of the first one
counts the others; without it decoders guess from the first bit rates, and stop where they guessed.
Here frames are counted, and an index is written that is right. Formats: ISO/IEC 11172-3, 13818-3;
the index as LAME's "Mp3 Info Tag" describes it.
"""

from __future__ import annotations

import dataclasses
import functools
import struct
from collections.abc import Iterator
from typing import NamedTuple

from maestro_jax.audio.containers.layout import Finding, Layout, Piece

_BITRATES = {
    (1, 1): (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (1, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (1, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}
_SYNC = 0xFF
_MONO = 3
_INDICES = (b"Xing", b"Info", b"VBRI")
# Flags of an index: the fields that it has.
_HAS_FRAMES, _HAS_BYTES = 1, 2
_VBRI_AT = 36
# Position in LAME's part of an index of the samples before and after the audio, 12 bits each.
_GAPS_AT = 141
# Least fractions of frames among the bytes: random bytes look like a few frames.
_LEAST_SHARE = 0.25
_LEAST_AROUND = 0.005
# Number of frames in a row that cannot be chance.
_LEAST_FRAMES = 4
# Bytes of an index that is written here.
_ROOM = 200


class _Kind(NamedTuple):
    """The properties that all frames of a stream share."""

    version: int
    layer: int
    rate: int


class _Frame(NamedTuple):
    kind: _Kind
    length: int
    samples: int


@dataclasses.dataclass
class _Stream:
    """Frames that are decoded together.

    Attributes:
        kind: Kind of its frames.
        mono: Whether they have one channel.
        index: Bytes of the index frame, if it has one.
        stated: Number of frames by the index; 0 if it states none.
        frames: Begin and end of the other frames.
    """

    kind: _Kind
    mono: bool
    index: bytes = b""
    stated: int = 0
    frames: list[tuple[int, int]] = dataclasses.field(default_factory=list)


def examine(content: bytes) -> Layout:
    """Counts the frames of a file.

    Args:
        content: The whole file, with or without tags.

    Returns:
        Its layout: the file as it is if its index frame counts all frames, else with new index
        frames; without a format if there are no frames.
    """
    streams, junk, partial = _walk(content)
    # A single frame among other bytes is taken for chance.
    streams = [stream for stream in streams if len(stream.frames) > 1] or streams[:1]
    frame_bytes = sum(end - begin for stream in streams for begin, end in stream.frames)
    if frame_bytes < _LEAST_SHARE * (frame_bytes + junk):
        return Layout("")
    if not streams or streams[0].kind.layer != 3:
        return Layout("mp3" if streams else "")
    findings = []
    if junk:
        findings.append(Finding("damaged audio", f"{junk} bytes between its frames are none"))
    if partial and not any(len(one.frames) < one.stated for one in streams):
        findings.append(Finding("cut short", "it ends in the middle of a frame"))
    is_right = len(streams) == 1 and abs(len(streams[0].frames) - streams[0].stated) <= 1
    around = (
        len(content) - after_tags(content) - frame_bytes - sum(len(one.index) for one in streams)
    )
    # libmpg123 prints warnings if the index counts other bytes than there are.
    if is_right and not junk and around < _LEAST_AROUND * frame_bytes:
        return Layout("mp3", findings=tuple(findings))
    pieces = tuple(
        Piece(_indexed(content, stream), stream.stated, len(stream.frames)) for stream in streams
    )
    return Layout("mp3", pieces, tuple(findings))


def begins(content: bytes) -> bool:
    """Tells whether content begins with a frame, or with what may precede one, after its tags."""
    return _frame(*content[:3]) is not None if len(content) > 2 and content[0] else True


def after_tags(content: bytes, at: int = 0) -> int:
    """Returns where ID3v2 tags end; at most the length of the content."""
    while content[at : at + 3] == b"ID3" and at + 10 <= len(content):
        size = 0
        for seven_bits in content[at + 6 : at + 10]:
            size = size << 7 | seven_bits & 0x7F
        footer = 10 if content[at + 5] & 0x10 else 0
        at = min(at + 10 + size + footer, len(content))
    return at


def is_stream(content: bytes, at: int) -> bool:
    """Tells whether several frames of one kind follow one another from `at` on."""
    kind = None
    for _ in range(_LEAST_FRAMES):
        frame = _frame(*content[at : at + 3]) if at + 3 <= len(content) else None
        if frame is None or kind not in (None, frame.kind):
            return False
        kind = frame.kind
        at += frame.length
    return True


def _walk(content: bytes) -> tuple[list[_Stream], int, bool]:
    """Finds the streams of a file; counts other bytes; tells whether the last frame is cut off."""
    indices = {at for name in _INDICES for at in _places(content, name)}
    streams: list[_Stream] = []
    at, end, junk, skipped = 0, len(content), 0, 0
    kind, mono, partial = None, None, False
    while at + 4 <= end:
        frame = _frame(content[at], content[at + 1], content[at + 2])
        if frame is not None:
            is_mono = content[at + 3] >> 6 == _MONO
            follows = frame.kind is kind and is_mono is mono and not skipped
            if at + frame.length > end:
                if follows:
                    partial = True
                    break
                frame = None
            elif not follows and not _confirmed(content, at + frame.length, frame.kind):
                frame = None
        if frame is None:
            beyond = _after_tag(content, at)
            if beyond is None:
                beyond = content.find(_SYNC, at + 1)
                beyond = end if beyond < 0 else beyond
                skipped += beyond - at
            at = beyond
            continue
        if kind is not None:
            junk += skipped
        skipped = 0
        side = (17 if is_mono else 32) if frame.kind.version == 3 else (9 if is_mono else 17)
        is_index = bool(indices) and (
            at + 4 + side in indices or (at + _VBRI_AT in indices and at + 4 + side != _VBRI_AT)
        )
        if kind is None or is_index or frame.kind is not kind or is_mono is not mono:
            kind, mono = frame.kind, is_mono
            streams.append(_Stream(kind, mono))
        if is_index:
            streams[-1].index = content[at : at + frame.length]
            streams[-1].stated = _stated(streams[-1].index, 4 + side)
        else:
            streams[-1].frames.append((at, at + frame.length))
        at += frame.length
    return streams, junk, partial


def _places(content: bytes, name: bytes) -> Iterator[int]:
    """Yields where some bytes occur; five times as fast as a regular expression."""
    at = content.find(name)
    while at >= 0:
        yield at
        at = content.find(name, at + 1)


@functools.cache
def _frame(first: int, second: int, third: int) -> _Frame | None:
    """Parses three bytes as the beginning of a frame; None if they are not one."""
    version, layer = second >> 3 & 3, 4 - (second >> 1 & 3)
    bitrate, rate = third >> 4, third >> 2 & 3
    if first != _SYNC or second & 0xE0 != 0xE0:
        return None
    if version == 1 or layer == 4 or bitrate in (0, 15) or rate == 3:
        return None
    bits = _BITRATES[1 if version == 3 else 2, layer if version == 3 else min(layer, 2)][bitrate]
    samples = 384 if layer == 1 else 576 if layer == 3 and version != 3 else 1152
    unit = 4 if layer == 1 else 1
    length = samples // 8 * bits * 1000 // unit // _RATES[version][rate] * unit
    kind = _kind(version, layer, _RATES[version][rate])
    return _Frame(kind, length + (third >> 1 & 1) * unit, samples)


# One object per kind, so that `is` compares them.
_kind = functools.cache(_Kind)


def _confirmed(content: bytes, at: int, kind: _Kind) -> bool:
    """Tells whether another frame of the same kind, a tag or the end follows."""
    if at + 4 > len(content) or _after_tag(content, at) is not None:
        return True
    following = _frame(content[at], content[at + 1], content[at + 2])
    return following is not None and following.kind is kind


def _after_tag(content: bytes, at: int) -> int | None:
    """Returns where a tag of any kind ends; None if there is no tag."""
    beginning = content[at : at + 12]
    if beginning.startswith(b"ID3"):
        return max(after_tags(content, at), at + 10)
    if beginning.startswith(b"APETAGEX"):
        (size,) = struct.unpack("<I", content[at + 12 : at + 16].ljust(4, b"\0"))
        # The size counts the footer, but no header.
        is_header = bool(content[at + 23 : at + 24]) and content[at + 23] & 0x20
        return min(at + 32 + (size if is_header else 0), len(content))
    if beginning.startswith(b"LYRICSBEGIN"):
        end = content.find(b"LYRICS200", at)
        return end + 9 if end >= 0 else None
    if beginning.startswith(b"TAG") and at + 128 <= len(content):
        return at + 128
    return None


def _stated(frame: bytes, at: int) -> int:
    """Reads the number of frames that an index frame states."""
    if frame[_VBRI_AT : _VBRI_AT + 4] == b"VBRI":
        return int.from_bytes(frame[_VBRI_AT + 14 : _VBRI_AT + 18], "big")
    flags, frames = struct.unpack(">II", frame[at + 4 : at + 12].ljust(8, b"\0"))
    return frames if flags & _HAS_FRAMES else 0


def _indexed(content: bytes, stream: _Stream) -> bytes:
    """Writes the frames of a stream after an index frame that counts them."""
    frames = b"".join(content[begin:end] for begin, end in stream.frames)
    count = len(stream.frames)
    first = content[stream.frames[0][0] :][:4] if stream.frames else stream.index[:4]
    version = stream.kind.version
    side = (17 if stream.mono else 32) if version == 3 else (9 if stream.mono else 17)
    place = 4 + side
    name = stream.index[place : place + 4]
    if name in (b"Xing", b"Info") and stream.index[place + 7] & 3 == 3:
        index = bytearray(stream.index)
        struct.pack_into(">II", index, place + 8, count, len(frames) + len(index))
        gaps = place + _GAPS_AT
        if abs(count - stream.stated) > 1 and gaps + 3 <= len(index):
            # The samples to drop at the end are not at the end of a stream that was cut.
            index[gaps + 1] &= 0xF0
            index[gaps + 2] = 0
        return bytes(index) + frames
    for bitrate in range(1, 15):
        # No checksum, no padding.
        header = bytes((_SYNC, first[1] | 1, bitrate << 4 | first[2] & 0x0C, first[3]))
        frame = _frame(*header[:3])
        if frame is not None and frame.length >= _ROOM:
            break
    index = bytearray(header.ljust(frame.length if frame else _ROOM, b"\0"))
    flags = _HAS_FRAMES | _HAS_BYTES
    struct.pack_into(">4sIII", index, place, b"Xing", flags, count, len(frames) + len(index))
    return bytes(index) + frames
