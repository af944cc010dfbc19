"""Containers whose header states the size of the samples: AIFF, CAF, W64, AU and NIST sphere.

libsndfile reads them, and what is there of a file that was cut, without a word.
"""

from __future__ import annotations

import io
import os
import re
import struct
from collections.abc import Callable
from typing import IO

from maestro_jax.data.containers.layout import Finding, Layout, Piece

# Where a size says that it was not known.
_NOT_KNOWN = (0, 0xFFFFFFFF, 2**64 - 1)
# Behind whose samples nothing may come: so much more than is stated are samples as well.
_WITHOUT_CHUNKS = ("au", "sphere")
_FEW = 0.02
_W64_DATA = b"data\xf3\xac\xd3\x11\x8c\xd1\x00\xc0\x4f\x8e\xdb\x8a"


def examine(file: IO[bytes]) -> Layout:
    """Compares the size of the samples with the file.

    Args:
        file: Open at any place.

    Returns:
        The layout; of no format, if it is none of these.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    magic = file.read(8)
    known = [one for beginning, one in _FORMATS.items() if magic.startswith(beginning)]
    if not known:
        return Layout("")
    name, place, another = known[0]
    found = place(file, size)
    if found is None:
        return Layout(name)
    begin, stated = found
    end = begin + stated
    if stated in _NOT_KNOWN or end >= size:
        piece = Piece() if stated in _NOT_KNOWN else Piece(None, stated, size - begin)
        return Layout(name, (piece,))
    file.seek(end)
    rest = file.read()
    second = another.search(rest)
    file.seek(0)
    if second is not None:
        # The chunks that follow the samples are those of the first file.
        first = file.read(end + second.start())
        rest = rest[second.start() :]
        more = examine(io.BytesIO(rest))
        pieces = (piece._replace(content=piece.content or rest) for piece in more.pieces)
        said = Finding("header mismatch", f"another {name} file lies behind it, read as well")
        return Layout(name, (Piece(first), *pieces), (said, *more.findings))
    if name in _WITHOUT_CHUNKS and len(rest) > _FEW * stated and rest.strip(b"\0"):
        content = bytearray(file.read())
        if name == "au":
            content[8:12] = b"\xff" * 4
        return Layout(name, (Piece(bytes(content), stated, size - begin),))
    # libsndfile takes what follows for samples.
    return Layout(name, (Piece(file.read(end)) if name in ("w64", "sphere") else Piece(),))


def _aiff(file: IO[bytes], size: int) -> tuple[int, int] | None:
    return _chunk(file, size, 12, ">4sI", b"SSND", overhead=8)


def _caf(file: IO[bytes], size: int) -> tuple[int, int] | None:
    return _chunk(file, size, 8, ">4sQ", b"data", overhead=4)


def _w64(file: IO[bytes], size: int) -> tuple[int, int] | None:
    return _chunk(file, size, 40, "<16sQ", _W64_DATA, whole=True)


def _chunk(
    file: IO[bytes],
    size: int,
    at: int,
    head: str,
    wanted: bytes,
    *,
    overhead: int = 0,
    whole: bool = False,
) -> tuple[int, int] | None:
    """Where the samples begin, and their bytes.

    Args:
        file: The file.
        size: Its size.
        at: Where its first chunk begins.
        head: Name and size of a chunk, as `struct` reads them.
        wanted: The name of the chunk with the samples.
        overhead: Bytes of the chunk before the samples.
        whole: Whether sizes count the head of a chunk, and chunks begin at multiples of 8.
    """
    layout = struct.Struct(head)
    align = 8 if whole else 2
    while at + layout.size <= size:
        file.seek(at)
        name, length = layout.unpack(file.read(layout.size))
        if whole:
            length -= layout.size
        if length < 0:
            return None
        if name == wanted:
            unknown = length in _NOT_KNOWN
            return at + layout.size + overhead, length if unknown else length - overhead
        at += layout.size + length
        if layout.size != 12:  # Chunks of CAF follow one another as they are.
            at += -at % align
    return None


def _au(file: IO[bytes], size: int) -> tuple[int, int]:
    file.seek(0)
    order = ">" if file.read(4) == b".snd" else "<"
    begin, stated = struct.unpack(f"{order}II", file.read(8).ljust(8, b"\0"))
    return begin, stated


def _nist(file: IO[bytes], size: int) -> tuple[int, int] | None:
    file.seek(0)
    lines = file.read(1024).decode("latin1").splitlines()
    fields = {words[0]: words[2] for words in map(str.split, lines) if len(words) == 3}
    try:
        begin = int(lines[1])
        samples = int(fields["sample_count"])
        block = int(fields.get("channel_count", 1)) * int(fields["sample_n_bytes"])
    except (IndexError, KeyError, ValueError):
        return None
    # Compressed by shorten, samples are fewer bytes than the header counts.
    return None if "embedded" in fields.get("sample_coding", "") else (begin, samples * block)


_Place = Callable[[IO[bytes], int], tuple[int, int] | None]
# By their first bytes: the name, where the samples are, and how another file would begin.
_FORMATS: dict[bytes, tuple[str, _Place, re.Pattern[bytes]]] = {
    b"FORM": ("aiff", _aiff, re.compile(rb"FORM.{4}AIF[FC]", re.DOTALL)),
    b"caff": ("caf", _caf, re.compile(rb"caff\x00\x01\x00\x00desc")),
    b"riff\x2e\x91\xcf\x11": ("w64", _w64, re.compile(rb"riff\x2e\x91\xcf\x11\xa5\xd6")),
    b".snd": ("au", _au, re.compile(rb"\.snd\x00\x00.{6}\x00\x00\x00", re.DOTALL)),
    b"dns.": ("au", _au, re.compile(rb"dns\..{2}\x00\x00", re.DOTALL)),
    b"NIST_1A": ("sphere", _nist, re.compile(rb"NIST_1A\n")),
}
