"""Finds the beginnings of audio files, also of one that follows another in the same file.

Headers are searched by a few characteristic bytes first: several searches for bytes are faster than
one regular expression of all headers.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import IO

from maestro_jax.audio.containers import media, mpeg
from maestro_jax.audio.containers.layout import read_range

# Bytes that suffice to recognise a header; MPEG audio takes a few frames.
_LONGEST = 8192

# Name of the container, characteristic bytes, number of bytes before them, the whole header.
_HEADERS: tuple[tuple[str, bytes, int, re.Pattern[bytes]], ...] = tuple(
    (name, letters, before, re.compile(pattern, re.DOTALL))
    for name, letters, before, pattern in (
        ("wav", b"WAVE", 8, rb"(?:RIFF|RIFX|RF64|BW64).{4}WAVE(?:fmt |JUNK|ds64|bext|LIST)"),
        ("aiff", b"FORM", 0, rb"FORM.{4}AIF[FC]"),
        ("caf", b"caff", 0, rb"caff\x00\x01\x00\x00desc"),
        ("w64", b"riff\x2e\x91\xcf", 0, rb"riff\x2e\x91\xcf\x11\xa5\xd6"),
        ("au", b".snd", 0, rb"\.snd\x00\x00.{6}\x00\x00\x00"),
        ("au", b"dns.", 0, rb"dns\..{2}\x00\x00.{4}.\x00\x00\x00"),
        ("sphere", b"NIST_1A", 0, rb"NIST_1A\n"),
        ("flac", b"fLaC", 0, rb"fLaC[\x00\x80]\x00\x00\x22"),
        ("ogg", b"OggS", 0, rb"OggS\x00[\x02\x06]"),
        ("mp4", b"ftyp", 4, rb"\x00\x00\x00.ftyp[ -~]{4}"),
        ("webm", b"\x1a\x45\xdf\xa3", 0, rb"\x1a\x45\xdf\xa3.{1,60}?\x42\x82.(?:webm|matroska)"),
        ("mp3", b"ID3", 0, rb"ID3[\x02-\x04]\x00.[\x00-\x7f]{4}"),
        ("mp3", b"Xing\x00\x00\x00", -1, rb""),
        ("mp3", b"Info\x00\x00\x00", -1, rb""),
    )
)
# Beginnings of frames of MPEG audio (layer III) and of AAC.
_SYNCS = {
    "mp3": (b"\xff\xfb", b"\xff\xfa", b"\xff\xf3", b"\xff\xf2", b"\xff\xe3", b"\xff\xe2"),
    "aac": (b"\xff\xf1", b"\xff\xf9", b"\xff\xf0", b"\xff\xf8"),
}
# Bytes of an index frame before its characteristic bytes: a header of 4, with or without a checksum
# of 2, and the side information.
_BEFORE_INDEX = (36, 21, 13, 38, 23, 15)
# The first packet of FLAC in Ogg.
_WITHIN_OGG = b"\x7fFLAC"


def begins(file: IO[bytes], at: int) -> bool:
    """Tells whether an audio file begins at `at`."""
    file.seek(at)
    content = file.read(_LONGEST)
    if content.startswith(b"ID3"):
        # Tags before the first frame may contain pictures.
        content += file.read()
        return _is_frames(content, mpeg.after_tags(content))
    return any(pattern.match(content) for *_, before, pattern in _HEADERS if before >= 0) or (
        _is_frames(content, 0)
    )


def find(content: bytes, at: int = 0, but: str = "") -> int:
    """Finds the first audio file that begins within other bytes.

    Args:
        content: The bytes.
        at: Position from which to search.
        but: Name of the container of the bytes, whose files are not searched. Empty for samples,
            among which frames without a tag or an index are not searched either: a tone may look
            like them.

    Returns:
        Its position; 0 if there is none.
    """
    places = [
        place
        for name, letters, before, pattern in _HEADERS
        if name != but
        for place in _first(content, at, letters, before, pattern)
    ]
    end = min(places, default=len(content))
    for name, syncs in _SYNCS.items() if but else ():
        is_stream = media.is_adts if name == "aac" else mpeg.is_stream
        for sync in syncs if name != but else ():
            place = content.find(sync, at, end)
            while place >= 0 and not is_stream(content, place):
                place = content.find(sync, place + 1, end)
            end = place if place >= 0 else end
    return end if end < len(content) else 0


def behind_chunk(
    file: IO[bytes],
    at: int,
    size: int,
    head: str,
    *,
    begin: int = 0,
    align: int = 1,
    counts_head: bool = False,
) -> tuple[int, bool]:
    """Finds what follows the counted samples: other chunks, another file, or more samples.

    Args:
        file: The file.
        at: Position after the samples.
        size: Size of the file.
        head: Format of name and size of a chunk, for `struct`; empty for formats without chunks.
        begin: Position of the first byte, from which chunks are aligned.
        align: Alignment of chunks.
        counts_head: Whether a size counts the head of its chunk.

    Returns:
        The position of another file, or 0, and whether there are more samples.
    """
    # Some writers do not pad.
    if begins(file, at):
        return at, False
    if not head:
        return 0, bool(read_range(file, at, size).strip(b"\0"))
    at += (begin - at) % align
    layout = struct.Struct(head)
    while at + layout.size <= size:
        if begins(file, at):
            return at, False
        file.seek(at)
        name, length = layout.unpack(file.read(layout.size))
        length -= layout.size if counts_head else 0
        is_name = all(32 <= letter < 127 for letter in name[:4])
        if not is_name or not 0 <= length <= size + 1 - at - layout.size:
            is_tag = name.startswith((b"TAG", b"ID3", b"APET"))
            return 0, not is_tag and bool(read_range(file, at, size).strip(b"\0"))
        at += layout.size + length
        at += (begin - at) % align
    return 0, False


def _is_frames(content: bytes, at: int) -> bool:
    return mpeg.is_stream(content, at) or media.is_adts(content, at)


def _first(
    content: bytes, at: int, letters: bytes, before: int, pattern: re.Pattern[bytes]
) -> Iterator[int]:
    """Yields the first place of one header, if there is one."""
    letters_at = content.find(letters, at)
    while letters_at >= 0:
        if before < 0:
            places = [letters_at - back for back in _BEFORE_INDEX if letters_at - back >= at]
            headers = [one for one in places if mpeg.is_stream(content, one)]
        else:
            place = letters_at - before
            is_header = place >= at and pattern.match(content, place) is not None
            if is_header and letters == b"ID3":
                is_header = _is_frames(content, mpeg.after_tags(content, place))
            if is_header and letters == b"fLaC":
                is_header = content[max(place - 9, 0) : place - 4] != _WITHIN_OGG
            headers = [place] if is_header else []
        if headers:
            yield headers[0]
            return
        letters_at = content.find(letters, letters_at + 1)
