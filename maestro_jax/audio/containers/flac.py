"""FLAC: how many samples its first block counts, and streams that lie behind one another.

Format: RFC 9639.
"""

from __future__ import annotations

import re

from maestro_jax.audio.containers.layout import Layout, Piece

MAGIC = b"fLaC"
# Behind it comes the block that describes the stream: type 0, 34 bytes; the last one, or not.
_BEGIN = re.compile(rb"fLaC[\x00\x80]\x00\x00\x22")
_TOTAL_AT, _TOTAL_BITS = 18, 36
_LONGEST_BLOCK_AT = 10
# Bytes at the end of a file in which the last frame is looked for.
_TAIL = 1 << 18
_SYNC = re.compile(rb"\xff[\xf8\xf9]", re.DOTALL)
# The polynomial of a header's checksum.
_POLYNOMIAL = 0x07


def examine(content: bytes) -> Layout:
    """Finds the streams of a file.

    Args:
        content: All of it; begins with `MAGIC`.

    Returns:
        Its layout. A piece has the samples that its header states, 0 if that does not say: a
        decoder has to count.
    """
    begins = [match.start() for match in _BEGIN.finditer(content)]
    if not begins or begins[0]:
        return Layout("flac")
    ends = [*begins[1:], len(content)]
    totals = [_total(content, begin) for begin in begins]
    if len(begins) == 1:
        is_indexed = 0 < totals[0] == _counted(content)
        return Layout("flac", (Piece(frames=totals[0]),), is_indexed=is_indexed)
    pieces = (
        Piece(content[begin:end], frames=total)
        for begin, end, total in zip(begins, ends, totals, strict=True)
    )
    return Layout("flac", tuple(pieces))


def after_blocks(content: bytes) -> int:
    """Where the first frame begins: tags, pictures and the headers of other files lie before it."""
    at, is_last = len(MAGIC), False
    while not is_last and at + 4 <= len(content):
        is_last = bool(content[at] & 0x80)
        at += 4 + int.from_bytes(content[at + 1 : at + 4], "big")
    return min(at, len(content))


def _total(content: bytes, begin: int) -> int:
    field = content[begin + _TOTAL_AT : begin + _TOTAL_AT + 8]
    return int.from_bytes(field, "big") & (1 << _TOTAL_BITS) - 1


def _counted(content: bytes) -> int:
    """The samples up to the end of the last frame, by that frame's header; 0 if none is found."""
    tail = content[-_TAIL:]
    longest = int.from_bytes(content[_LONGEST_BLOCK_AT : _LONGEST_BLOCK_AT + 2], "big")
    for match in reversed(list(_SYNC.finditer(tail))):
        header = tail[match.start() : match.start() + 16].ljust(16, b"\0")
        is_variable, size_code, rate_code = header[1] & 1, header[2] >> 4, header[2] & 15
        # The number is written as UTF-8 writes letters.
        length = max(8 - (header[4] ^ 0xFF).bit_length(), 1)
        if not size_code or rate_code == 15 or length == 8:
            continue
        number = header[4] & (0x7F if length == 1 else 0x7F >> length)
        for byte in header[5 : 4 + length]:
            number = number << 6 | byte & 0x3F
        at = 4 + length
        if size_code in (6, 7):
            samples = int.from_bytes(header[at : at + size_code - 5], "big") + 1
            at += size_code - 5
        elif size_code < 6:
            samples = 192 if size_code == 1 else 144 << size_code
        else:
            samples = 1 << size_code
        at += {12: 1, 13: 2, 14: 2}.get(rate_code, 0)
        if _checksum(header[:at]) == header[at]:
            return (number if is_variable else number * longest) + samples
    return 0


def _checksum(header: bytes) -> int:
    value = 0
    for byte in header:
        value ^= byte
        for _ in range(8):
            value = (value << 1 ^ _POLYNOMIAL) & 0xFF if value & 0x80 else value << 1
    return value
