"""Reads RIFF files: wav, and its long forms RF64 and BW64.

The size of the samples stands before them, so it is wrong wherever a writer was interrupted or
wrote to a pipe. Format: Multimedia Programming Interface and Data Specifications 1.0 (IBM and
Microsoft, 1991); RF64: EBU Tech 3306.
"""

from __future__ import annotations

import io
import os
import struct
from typing import IO, NamedTuple

from maestro_jax.audio.containers import headers
from maestro_jax.audio.containers.layout import Finding, Layout, Piece, read_range

MAGICS = (b"RIFF", b"RIFX", b"RF64", b"BW64")
_CHUNK = 8
# Sizes that mean "unknown": 0, or from here on (SoX writes 0x7FFFF000).
_UNKNOWN = 0x7FFF0000
_IN_DS64 = 0xFFFFFFFF
# PCM, float, A-law, mu-law: uncompressed samples, in blocks of one per channel.
_PLAIN = (1, 3, 6, 7)
_EXTENSIBLE = 0xFFFE
# Seconds beyond the stated size from which on they are samples, unless they are chunks.
_FEW = 0.2


class _Format(NamedTuple):
    tag: int
    channels: int
    rate: int
    byte_rate: int
    block: int
    bits: int


def examine(file: IO[bytes], begin: int = 0) -> Layout:
    """Examines the chunks of a file.

    Args:
        file: Open at any place; one of `MAGICS` is at `begin`.
        begin: Position of the file.

    Returns:
        Its layout, with a rebuilt file if there are samples that the header does not count.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(begin)
    magic, riff, form = struct.unpack("<4sI4s", file.read(12).ljust(12, b"\0"))
    if form == b"AVI ":
        whole, present = riff + _CHUNK, size - begin
        return Layout("avi", (Piece(None, whole, present) if whole > present else Piece(),))
    if form != b"WAVE":
        return Layout("")
    order = ">" if magic == b"RIFX" else "<"
    at, long_size, fmt, header = begin + 12, 0, None, b""
    while at + _CHUNK <= size:
        file.seek(at)
        name, stated = struct.unpack(f"{order}4sI", file.read(_CHUNK))
        if name == b"data":
            break
        content = file.read(min(stated, 65536))
        if name == b"ds64" and len(content) >= 16:
            long_size = struct.unpack_from("<Q", content, 8)[0]
        elif name == b"fmt " and len(content) >= 16:
            fmt, header = _Format(*struct.unpack_from(f"{order}HHIIHH", content)), content
        at += _CHUNK + stated + stated % 2
    else:
        return Layout("wav")
    if fmt is None:
        return Layout("wav")
    first = at + _CHUNK
    mended, findings = _mended(fmt, header, order)
    if stated == _IN_DS64 and (long_size or magic in (b"RF64", b"BW64")):
        # An interrupted writer leaves 0 in the chunk of long sizes, too.
        stated = long_size
    present = size - first
    is_unknown = stated == 0 or (stated >= _UNKNOWN and stated > present)
    # In compressed samples, such as MPEG audio, headers of other formats belong to the samples.
    is_plain = _tag(fmt, header, order) in _PLAIN
    second, is_samples = 0, True
    if is_plain or not is_unknown:
        after = first + (0 if is_unknown else stated)
        second, is_samples = headers.behind_chunk(
            file, after, size, f"{order}4sI", begin=first, align=2
        )
    if is_unknown:
        # Written to a pipe, perhaps followed by another file. Chunks are not samples.
        content = read_range(file, first, second or size) if is_samples or stated else b""
        if is_plain and (length := headers.find(content)):
            content, second = content[:length], first + length
        piece = Piece(_rebuilt(mended, content, order))
        if stated and mended == header and not second:
            # Every decoder reads the file as it is.
            piece = Piece()
        return Layout("wav", (piece,), findings, end=second)
    if mended != header:
        content = read_range(file, first, first + stated)
        return Layout("wav", (Piece(_rebuilt(mended, content, order)),), findings, end=second)
    if stated > present:
        return Layout("wav", (Piece(None, stated, present),), findings)
    if is_samples and present - stated > _FEW * max(fmt.byte_rate, 1):
        content = read_range(file, first, size)
        if is_plain and (length := headers.find(content, stated)):
            content, second = content[:length], first + length
        content, present = _rebuilt(header, content, order), len(content)
        return Layout("wav", (Piece(content, stated, present),), findings, end=second)
    return Layout("wav", findings=findings, end=second)


def _mended(fmt: _Format, header: bytes, order: str) -> tuple[bytes, tuple[Finding, ...]]:
    """Corrects a format whose sizes contradict one another; returns the contradictions.

    If the byte rate is the sample rate times the block size, these three are taken to be right, and
    the number of channels or of bits to be wrong.
    """
    if _tag(fmt, header, order) not in _PLAIN or not fmt.channels or not fmt.bits:
        return header, ()
    problems = []
    is_certain = fmt.byte_rate == fmt.rate * fmt.block
    if fmt.byte_rate and not is_certain:
        problems.append(
            f"{fmt.rate} samples a second of {fmt.block} bytes but {fmt.byte_rate} bytes a second"
        )
    width = -(-fmt.bits // 8)
    if fmt.block not in (fmt.channels * width, fmt.channels * max(width, 4 if width == 3 else 0)):
        problems.append(
            f"{fmt.channels} channels of {fmt.bits} bits but {fmt.block} bytes for a sample of all"
        )
        # Either number may be wrong: samples of 8 bits are rarer than of more.
        choices = [(fmt.block // width, fmt.bits)] if fmt.block % width == 0 else []
        if fmt.block % fmt.channels == 0:
            choices.append((fmt.channels, 8 * fmt.block // fmt.channels))
        if is_certain and fmt.block and choices:
            channels, bits = max(choices, key=lambda choice: choice[1])
            mended = bytearray(header)
            struct.pack_into(f"{order}H", mended, 2, channels)
            struct.pack_into(f"{order}H", mended, 14, bits)
            header = bytes(mended)
    return header, tuple(Finding("header mismatch", f"its header states {one}") for one in problems)


def _tag(fmt: _Format, header: bytes, order: str) -> int:
    if fmt.tag == _EXTENSIBLE and len(header) >= 26:
        return int(struct.unpack_from(f"{order}H", header, 24)[0])
    return fmt.tag


def _rebuilt(header: bytes, samples: bytes, order: str) -> bytes:
    """Builds a file of these samples."""
    made = io.BytesIO()
    length = 4 + _CHUNK + len(header) + _CHUNK + len(samples)
    made.write(b"RIFX" if order == ">" else b"RIFF")
    made.write(struct.pack(f"{order}I", min(length, 0xFFFFFFFF)) + b"WAVE")
    made.write(b"fmt " + struct.pack(f"{order}I", len(header)) + header)
    made.write(b"data" + struct.pack(f"{order}I", min(len(samples), 0xFFFFFFFF)) + samples)
    return made.getvalue()
