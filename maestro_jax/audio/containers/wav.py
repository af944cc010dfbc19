"""RIFF: wav files, of which RF64 and BW64 are the long ones.

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
from maestro_jax.audio.containers.layout import Finding, Layout, Piece

MAGICS = (b"RIFF", b"RIFX", b"RF64", b"BW64")
_CHUNK = 8
# A size that says that it was not known: 0, or from here on (SoX writes 0x7FFFF000).
_UNKNOWN = 0x7FFF0000
_IN_DS64 = 0xFFFFFFFF
# PCM, float, A-law, mu-law: samples lie one by one, in blocks of one of each channel.
_PLAIN = (1, 3, 6, 7)
_EXTENSIBLE = 0xFFFE
# Seconds beyond the stated size that are taken for samples, if they are no chunk.
_FEW = 0.2


class _Format(NamedTuple):
    tag: int
    channels: int
    rate: int
    byte_rate: int
    block: int
    bits: int


def examine(file: IO[bytes], begin: int = 0) -> Layout:
    """Looks through the chunks of a file.

    Args:
        file: Open at any place; one of `MAGICS` is at `begin`.
        begin: Where the file begins.

    Returns:
        Its layout: rebuilt where it holds samples that its header does not count.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(begin)
    magic, riff, form = struct.unpack("<4sI4s", file.read(12).ljust(12, b"\0"))
    if form == b"AVI ":
        whole, there = riff + _CHUNK, size - begin
        return Layout("avi", (Piece(None, whole, there) if whole > there else Piece(),))
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
        # A writer that was interrupted leaves 0 in the chunk of long sizes, too.
        stated = long_size
    present = size - first
    is_unknown = stated == 0 or (stated >= _UNKNOWN and stated > present)
    # Within mpeg audio, say, other headers belong to the samples.
    is_plain = _tag(fmt, header, order) in _PLAIN
    second, is_samples = 0, True
    if is_plain or not is_unknown:
        second, is_samples = _behind(file, first, 0 if is_unknown else stated, size, order)
    if is_unknown:
        # Written to a pipe, perhaps with another file behind it. Chunks alone are no samples.
        content = _slice(file, first, second or size) if is_samples or stated else b""
        if is_plain and (found := headers.find(content)):
            content, second = content[:found], first + found
        piece = Piece(_rebuilt(mended, content, order))
        if stated and mended == header and not second:
            # Every decoder reads it as it lies there.
            piece = Piece()
        return Layout("wav", (piece,), findings, end=second)
    if mended != header:
        content = _slice(file, first, first + stated)
        return Layout("wav", (Piece(_rebuilt(mended, content, order)),), findings, end=second)
    if stated > present:
        return Layout("wav", (Piece(None, stated, present),), findings)
    if is_samples and present - stated > _FEW * max(fmt.byte_rate, 1):
        content = _slice(file, first, size)
        if is_plain and (found := headers.find(content, stated)):
            content, second = content[:found], first + found
        content, present = _rebuilt(header, content, order), len(content)
        return Layout("wav", (Piece(content, stated, present),), findings, end=second)
    return Layout("wav", findings=findings, end=second)


def _mended(fmt: _Format, header: bytes, order: str) -> tuple[bytes, tuple[Finding, ...]]:
    """The format as all its sizes together have it, and where they contradict one another.

    Where bytes a second are samples a second times the bytes of a sample of all channels, these
    three are right, and the number of channels or of bits is not.
    """
    if _tag(fmt, header, order) not in _PLAIN or not fmt.channels or not fmt.bits:
        return header, ()
    found = []
    is_certain = fmt.byte_rate == fmt.rate * fmt.block
    if fmt.byte_rate and not is_certain:
        found.append(
            f"{fmt.rate} samples a second of {fmt.block} bytes but {fmt.byte_rate} bytes a second"
        )
    width = -(-fmt.bits // 8)
    if fmt.block not in (fmt.channels * width, fmt.channels * max(width, 4 if width == 3 else 0)):
        found.append(
            f"{fmt.channels} channels of {fmt.bits} bits but {fmt.block} bytes for a sample of all"
        )
        # Either number may be the wrong one: samples of 8 bits are rarer than of more.
        choices = [(fmt.block // width, fmt.bits)] if fmt.block % width == 0 else []
        if fmt.block % fmt.channels == 0:
            choices.append((fmt.channels, 8 * fmt.block // fmt.channels))
        if is_certain and fmt.block and choices:
            channels, bits = max(choices, key=lambda choice: choice[1])
            mended = bytearray(header)
            struct.pack_into(f"{order}H", mended, 2, channels)
            struct.pack_into(f"{order}H", mended, 14, bits)
            header = bytes(mended)
    return header, tuple(Finding("header mismatch", f"its header states {one}") for one in found)


def _tag(fmt: _Format, header: bytes, order: str) -> int:
    if fmt.tag == _EXTENSIBLE and len(header) >= 26:
        return int(struct.unpack_from(f"{order}H", header, 24)[0])
    return fmt.tag


def _behind(file: IO[bytes], first: int, stated: int, size: int, order: str) -> tuple[int, bool]:
    """What follows the samples that are counted: other chunks, another file, or more samples.

    Args:
        file: The file.
        first: Where the samples begin.
        stated: Their bytes.
        size: That of the file.
        order: Of its bytes.

    Returns:
        Where another file begins, or 0, and whether there are more samples.
    """
    at = first + stated + stated % 2
    if stated % 2 and headers.begins(file, at - 1):
        # Not every writer fills up to an even number.
        return at - 1, False
    while at + _CHUNK <= size:
        file.seek(at)
        name, length = struct.unpack(f"{order}4sI", file.read(_CHUNK))
        if headers.begins(file, at):
            return at, False
        if not all(32 <= letter < 127 for letter in name) or at + _CHUNK + length > size + 1:
            tag = name.startswith((b"TAG", b"ID3", b"APET"))
            return 0, not tag and bool(_slice(file, at, size).strip(b"\0"))
        at += _CHUNK + length + length % 2
    return 0, False


def _slice(file: IO[bytes], begin: int, end: int) -> bytes:
    file.seek(begin)
    return file.read(end - begin)


def _rebuilt(header: bytes, samples: bytes, order: str) -> bytes:
    """A file of these samples."""
    made = io.BytesIO()
    length = 4 + _CHUNK + len(header) + _CHUNK + len(samples)
    made.write(b"RIFX" if order == ">" else b"RIFF")
    made.write(struct.pack(f"{order}I", min(length, 0xFFFFFFFF)) + b"WAVE")
    made.write(b"fmt " + struct.pack(f"{order}I", len(header)) + header)
    made.write(b"data" + struct.pack(f"{order}I", min(len(samples), 0xFFFFFFFF)) + samples)
    return made.getvalue()
