"""Containers whose header states the size of the samples: AIFF, CAF, W64, AU and NIST sphere.

libsndfile reads them, and what is there of a file that was cut, without a word.
"""

from __future__ import annotations

import os
import struct
from typing import IO, NamedTuple

from maestro_jax.audio.containers import headers
from maestro_jax.audio.containers.layout import Layout, Piece

# What a size of each width is where it was not known.
_NOT_KNOWN = {"I": (0, 0xFFFFFFFF), "Q": (0, 2**63 - 1, 2**64 - 1)}
# Bytes of samples that are not counted, as a share of those that are: fewer are none.
_FEW = 0.02
_LEAST = 400


class _Chunks(NamedTuple):
    """How the chunks of a format are laid out.

    Attributes:
        at: Where the first of them begins.
        head: Name and size of a chunk, as `struct` reads them.
        wanted: The name of the chunk with the samples.
        overhead: Bytes of that chunk before the samples.
        counts_head: Whether a size counts the head of its chunk.
        align: Chunks begin at multiples of it.
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
    """Where the samples of a file are.

    Attributes:
        first: Where they begin.
        stated: Their bytes according to the header; None if that says that it was not known.
        field: Where the size is stated; 0 if not in binary.
        order: Of the bytes of the size, and their number, as `struct` has it.
        more: What the size counts besides.
        is_endless: Whether the size says that samples go on to the end.
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
        begin: Where the file begins.

    Returns:
        The layout; of no format, if it is none of these.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(begin)
    magic = file.read(8)
    name = next((one for beginning, one in _MAGICS.items() if magic.startswith(beginning)), "")
    if not name:
        return Layout("")
    if name in _CHUNKS:
        found = _chunk(file, begin, size, _CHUNKS[name])
    else:
        found = _au(file, begin) if name == "au" else _nist(file, begin)
    if found is None or found.first <= begin or (found.stated or 0) < 0:
        return Layout(name)
    first, stated, *_ = found
    if stated is not None and first + stated >= size:
        return Layout(name, (Piece(None, stated, size - first),))
    known = stated or 0
    second, is_samples = 0, True
    if not found.is_endless:
        second, is_samples = _behind(file, first + known, size, _CHUNKS.get(name), begin)
    end = size
    if is_samples and (at := headers.find(_slice(file, first + known, size))):
        end = second = first + known + at
    if not is_samples or (stated and end - first - known <= max(_FEW * known, _LEAST)):
        # libsndfile takes what follows for samples.
        is_cut = name in ("w64", "sphere")
        piece = Piece(_slice(file, begin, first + known) if is_cut else None)
        return Layout(name, (piece,), end=second)
    content = bytearray(_slice(file, begin, end))
    if found.field:
        stated = min(end - first + found.more, _NOT_KNOWN[found.order[1]][-1])
        struct.pack_into(found.order, content, found.field - begin, stated)
    return Layout(name, (Piece(bytes(content), known, end - first),), end=second)


def _behind(
    file: IO[bytes], at: int, size: int, chunks: _Chunks | None, begin: int
) -> tuple[int, bool]:
    """What follows the samples that are counted: other chunks, another file, or more samples.

    Args:
        file: The file.
        at: Where they end.
        size: That of the file.
        chunks: How chunks are laid out; None where there are none.
        begin: Where the file begins.

    Returns:
        Where another file begins, or 0, and whether there are more samples.
    """
    if headers.begins(file, at):
        return at, False
    if chunks is None:
        return 0, bool(_slice(file, at, size).strip(b"\0"))
    at += (begin - at) % chunks.align
    head = struct.Struct(chunks.head)
    while at + head.size <= size:
        file.seek(at)
        name, length = head.unpack(file.read(head.size))
        if headers.begins(file, at):
            return at, False
        length -= head.size if chunks.counts_head else 0
        is_name = all(32 <= letter < 127 for letter in name[:4])
        if not is_name or not 0 <= length <= size + 1 - at - head.size:
            return 0, bool(_slice(file, at, size).strip(b"\0"))
        at += head.size + length
        at += (begin - at) % chunks.align
    return 0, False


def _slice(file: IO[bytes], begin: int, end: int) -> bytes:
    file.seek(begin)
    return file.read(end - begin)


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
    # Compressed by shorten, samples are fewer bytes than the header counts.
    if "embedded" in fields.get("sample_coding", ""):
        return None
    return _Samples(first, samples * block)


# By their first bytes.
_MAGICS = {
    b"FORM": "aiff",
    b"caff": "caf",
    b"riff\x2e\x91\xcf\x11": "w64",
    b".snd": "au",
    b"dns.": "au",
    b"NIST_1A": "sphere",
}
