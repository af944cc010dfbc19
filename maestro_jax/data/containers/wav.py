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

from maestro_jax.data.containers.layout import Finding, Layout, Piece

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


def examine(file: IO[bytes]) -> Layout:
    """Looks through the chunks of a file.

    Args:
        file: Open at any place; begins with one of `MAGICS`.

    Returns:
        Its layout: rebuilt where it holds samples that its header does not count.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    magic, riff, form = struct.unpack("<4sI4s", file.read(12).ljust(12, b"\0"))
    if form == b"AVI ":
        return Layout(
            "avi", (Piece(None, riff + _CHUNK, size) if riff + _CHUNK > size else Piece(),)
        )
    if form != b"WAVE":
        return Layout("")
    order = ">" if magic == b"RIFX" else "<"
    at, long_size, fmt, header = 12, 0, None, b""
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
    begin = at + _CHUNK
    mended, findings = _mended(fmt, header, order)
    if stated == _IN_DS64 and long_size:
        stated = long_size
    present = size - begin
    if stated >= _UNKNOWN and stated > present:
        # Written to a pipe.
        stated = present
    second, is_samples = _behind(file, begin, stated, size, order)
    if stated == 0:
        # Another one that was; but chunks alone are no samples.
        content = _slice(file, begin, size) if is_samples else b""
        return Layout("wav", (Piece(_rebuilt(mended, content, order)),), findings)
    if mended != header:
        content = _slice(file, begin, begin + stated)
        return Layout("wav", (Piece(_rebuilt(mended, content, order)),), findings)
    if stated > present:
        return Layout("wav", (Piece(None, stated, present),), findings)
    if second:
        rest = _slice(file, second, size)
        more = examine(io.BytesIO(rest))
        pieces = [piece._replace(content=piece.content or rest) for piece in more.pieces]
        said = Finding("header mismatch", "another wav file lies behind it, which is read as well")
        return Layout(
            "wav",
            (Piece(_slice(file, 0, second)), *pieces),
            (*findings, said, *more.findings),
        )
    if is_samples and present - stated > _FEW * max(fmt.byte_rate, 1):
        content = _rebuilt(header, _slice(file, begin, size), order)
        return Layout("wav", (Piece(content, stated, present),), findings)
    return Layout("wav", findings=findings)


def _mended(fmt: _Format, header: bytes, order: str) -> tuple[bytes, tuple[Finding, ...]]:
    """The format as all its sizes together have it, and where they contradict one another.

    Where bytes a second are samples a second times the bytes of a sample of all channels, these
    three are right, and the number of channels or of bits is not.
    """
    tag = fmt.tag
    if tag == _EXTENSIBLE and len(header) >= 26:
        tag = struct.unpack_from(f"{order}H", header, 24)[0]
    if tag not in _PLAIN or not fmt.channels or not fmt.bits:
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


def _behind(file: IO[bytes], begin: int, stated: int, size: int, order: str) -> tuple[int, bool]:
    """What follows the samples that are counted: other chunks, another file, or more samples.

    Args:
        file: The file.
        begin: Where the samples begin.
        stated: Their bytes.
        size: That of the file.
        order: Of its bytes.

    Returns:
        Where another file begins, or 0, and whether there are more samples.
    """
    at = begin + stated + stated % 2
    while at + _CHUNK <= size:
        file.seek(at)
        name, length = struct.unpack(f"{order}4sI", file.read(_CHUNK))
        if name in MAGICS and file.read(4) == b"WAVE":
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
