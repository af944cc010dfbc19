"""Reads containers whose header states the size of the samples: AIFF, CAF, W64, AU, NIST sphere.

libsndfile reads them, and silently what remains of a file that was cut off.
"""

from __future__ import annotations

import os
import struct
from typing import IO, NamedTuple

from maestro_jax.audio.containers import headers
from maestro_jax.audio.containers.layout import Layout, Piece, read_range

# Sizes of each width that mean "unknown".
_NOT_KNOWN = {"I": (0, 0xFFFFFFFF), "Q": (0, 2**63 - 1, 2**64 - 1)}
# Least fraction and number of bytes after the counted samples that are taken for samples.
_FEW = 0.02
_LEAST = 400


class _Chunks(NamedTuple):
    """The layout of the chunks of a format.

    Attributes:
        at: Position of the first chunk.
        head: Format of name and size of a chunk, for `struct`.
        wanted: Name of the chunk with the samples.
        overhead: Bytes of that chunk before the samples.
        counts_head: Whether a size counts the head of its chunk.
        align: Alignment of chunks.
    """

    at: int
    head: str
    wanted: bytes
    overhead: int = 0
    counts_head: bool = False
    align: int = 1


_CHUNKS = {
    "aiff": _Chunks(12, ">4sI", b"SSND", overhead=8, align=2),
    "caf": _Chunks(8, ">4sQ", b"data", overhead=4),
    "w64": _Chunks(
        *(40, "<16sQ", b"data\xf3\xac\xd3\x11\x8c\xd1\x00\xc0\x4f\x8e\xdb\x8a"),
        counts_head=True,
        align=8,
    ),
}


class _Samples(NamedTuple):
    """The position of the samples in a file.

    Attributes:
        first: Position of the samples.
        stated: Their size by the header; None if it states that it is unknown.
        field: Position of the size in the header; 0 if it is not binary.
        order: Format of the size, for `struct`.
        more: Bytes that the size includes in addition to the samples.
        is_endless: Whether the size states that samples extend to the end of the file.
    """

    first: int
    stated: int | None
    field: int = 0
    order: str = ""
    more: int = 0
    is_endless: bool = False


def examine(file: IO[bytes], begin: int = 0) -> Layout:
    """Compares the size of the samples with the file.

    Args:
        file: Open at any place.
        begin: Position of the file.

    Returns:
        The layout, without a format if it is none of these.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(begin)
    magic = file.read(8)
    name = next((one for beginning, one in _MAGICS.items() if magic.startswith(beginning)), "")
    if not name:
        return Layout("")
    if name in _CHUNKS:
        where = _chunk(file, begin, size, _CHUNKS[name])
    else:
        where = _au(file, begin) if name == "au" else _nist(file, begin)
    if where is None or where.first <= begin or (where.stated or 0) < 0:
        return Layout(name)
    first, stated, *_ = where
    if stated is not None and first + stated >= size:
        return Layout(name, (Piece(None, stated, size - first),))
    known = stated or 0
    second, is_samples = 0, True
    if not where.is_endless:
        chunks = _CHUNKS.get(name, _Chunks(0, "", b""))
        second, is_samples = headers.behind_chunk(
            file,
            first + known,
            size,
            chunks.head,
            begin=begin,
            align=chunks.align,
            counts_head=chunks.counts_head,
        )
    end = size
    if is_samples and (at := headers.find(read_range(file, first + known, size))):
        end = second = first + known + at
    if not is_samples or (stated and end - first - known <= max(_FEW * known, _LEAST)):
        # libsndfile would take what follows for samples.
        is_cut = name in ("w64", "sphere")
        piece = Piece(read_range(file, begin, first + known) if is_cut else None)
        return Layout(name, (piece,), end=second)
    content = bytearray(read_range(file, begin, end))
    if where.field:
        stated = min(end - first + where.more, _NOT_KNOWN[where.order[1]][-1])
        struct.pack_into(where.order, content, where.field - begin, stated)
    return Layout(name, (Piece(bytes(content), known, end - first),), end=second)


def _chunk(file: IO[bytes], begin: int, size: int, chunks: _Chunks) -> _Samples | None:
    """Finds the chunk with the samples; None if there is none."""
    head = struct.Struct(chunks.head)
    width = chunks.head[-1]
    at = begin + chunks.at
    while at + head.size <= size:
        file.seek(at)
        name, length = head.unpack(file.read(head.size))
        more = chunks.overhead + (head.size if chunks.counts_head else 0)
        if name == chunks.wanted:
            is_endless = length in _NOT_KNOWN[width] and length > 0
            field = at + head.size - struct.calcsize(width)
            stated = None if is_endless or length <= more else length - more
            first = at + head.size + chunks.overhead
            return _Samples(first, stated, field, chunks.head[0] + width, more, is_endless)
        if chunks.counts_head:
            length -= head.size
        if length < 0:
            return None
        at += head.size + length
        at += (begin - at) % chunks.align
    return None


def _au(file: IO[bytes], begin: int) -> _Samples:
    file.seek(begin)
    order = ">I" if file.read(4) == b".snd" else "<I"
    first, stated = struct.unpack(order[0] + "II", file.read(8).ljust(8, b"\0"))
    is_endless = stated == _NOT_KNOWN["I"][1]
    known = None if stated in _NOT_KNOWN["I"] else stated
    return _Samples(begin + first, known, begin + 8, order, 0, is_endless)


def _nist(file: IO[bytes], begin: int) -> _Samples | None:
    file.seek(begin)
    lines = file.read(1024).decode("latin1").splitlines()
    fields = {words[0]: words[2] for words in map(str.split, lines) if len(words) == 3}
    try:
        first = begin + int(lines[1])
        samples = int(fields["sample_count"])
        block = int(fields.get("channel_count", 1)) * int(fields["sample_n_bytes"])
    except (IndexError, KeyError, ValueError):
        return None
    # Samples compressed by shorten have fewer bytes than the header counts.
    if "embedded" in fields.get("sample_coding", ""):
        return None
    return _Samples(first, samples * block)


# Formats by their first bytes.
_MAGICS = {
    b"FORM": "aiff",
    b"caff": "caf",
    b"riff\x2e\x91\xcf\x11": "w64",
    b".snd": "au",
    b"dns.": "au",
    b"NIST_1A": "sphere",
}
