"""Reads FLAC: the number of samples by the first block, and concatenated streams.

Format: RFC 9639.
"""

from __future__ import annotations

import re

from maestro_jax.audio.containers.layout import Layout, Piece

MAGIC = b"fLaC"
# Followed by the block that describes the stream: type 0, 34 bytes, the last one or not.
_BEGIN = re.compile(rb"fLaC[\x00\x80]\x00\x00\x22")
_TOTAL_AT, _TOTAL_BITS = 18, 36
_LONGEST_BLOCK_AT = 10
# Bytes at the end of a file in which to search for the last frame.
_TAIL = 1 << 18
_SYNC = re.compile(rb"\xff[\xf8\xf9]", re.DOTALL)
# Polynomial of the checksum of frame headers.
_POLYNOMIAL = 0x07


def examine(content: bytes) -> Layout:
    """Finds the streams of a file.

    Args:
        content: The whole file, which begins with `MAGIC`.

    Returns:
        Its layout. A piece has the number of samples in its header, 0 if it states none.
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
    """Finds the first frame; tags, pictures and headers of other files come before it."""
    at, is_last = len(MAGIC), False
    while not is_last and at + 4 <= len(content):
        is_last = bool(content[at] & 0x80)
        at += 4 + int.from_bytes(content[at + 1 : at + 4], "big")
    return min(at, len(content))


def _total(content: bytes, begin: int) -> int:
    field = content[begin + _TOTAL_AT : begin + _TOTAL_AT + 8]
    return int.from_bytes(field, "big") & (1 << _TOTAL_BITS) - 1


def _counted(content: bytes) -> int:
    """Counts the samples up to the end of the last frame by its header; 0 if there is none."""
    tail = content[-_TAIL:]
    longest = int.from_bytes(content[_LONGEST_BLOCK_AT : _LONGEST_BLOCK_AT + 2], "big")
    for match in reversed(list(_SYNC.finditer(tail))):
        header = tail[match.start() : match.start() + 16].ljust(16, b"\0")
        is_variable, size_code, rate_code = header[1] & 1, header[2] >> 4, header[2] & 15
        # The number is coded as UTF-8 codes characters.
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
