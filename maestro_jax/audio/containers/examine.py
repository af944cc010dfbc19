"""Which container a file is, and how it is built."""

from __future__ import annotations

import io
from typing import IO

from maestro_jax.audio.containers import chunked, flac, headers, media, mpeg, ogg, wav
from maestro_jax.audio.containers.layout import Finding, Layout

# Bytes in which text is told from audio.
_BEGINNING = 512


def examine(file: IO[bytes]) -> Layout:
    """Looks through a file, by its content and never by its name.

    Files that lie behind one another, of one format or of several, are pieces of one layout.

    Args:
        file: Open for reading, at any place.

    Returns:
        Its layout, of no format if it is none that is known.
    """
    found = [(0, _examine(file, 0))]
    while (end := found[-1][1].end) > found[-1][0]:
        found.append((end, _examine(file, end)))
    first = found[0][1]
    if len(found) == 1:
        return first
    pieces = tuple(
        piece._replace(
            content=_content(file, at, one.end) if piece.content is None else piece.content,
            format=one.format,
        )
        for at, one in found
        for piece in one.pieces
    )
    names = " and ".join(dict.fromkeys(one.format or "unknown" for _, one in found[1:]))
    count = len(found) - 1
    said = (
        f"another {names} file lies behind it, which is read as well"
        if count == 1
        else f"{count} other files ({names}) lie behind it, which are read as well"
    )
    findings = [finding for _, one in found for finding in one.findings]
    once = dict.fromkeys([Finding("header mismatch", said), *findings])
    return Layout(first.format, pieces, tuple(once))


def _examine(file: IO[bytes], begin: int) -> Layout:
    """Looks at the file that begins there, up to another one behind it."""
    file.seek(begin)
    beginning = file.read(_BEGINNING)
    if not beginning.startswith(b"ID3"):
        return _untagged(file, begin)
    content = _content(file, begin)
    after = mpeg.after_tags(content)
    rest = content[after:]
    if mpeg.begins(rest):
        return _mpeg(content, begin, after)
    found = _untagged(io.BytesIO(rest), 0)
    # Not every decoder passes over the tags of another format.
    whole = rest[: found.end or len(rest)]
    pieces = (
        piece._replace(content=whole if piece.content is None else piece.content)
        for piece in found.pieces
    )
    end = begin + after + found.end if found.end else 0
    return found._replace(pieces=tuple(pieces), end=end)


def _untagged(file: IO[bytes], begin: int) -> Layout:
    file.seek(begin)
    beginning = file.read(_BEGINNING)
    if beginning.startswith(wav.MAGICS):
        found = wav.examine(file, begin)
    elif beginning.startswith(ogg.MAGIC):
        content = _content(file, begin)
        end = headers.find(content, 1, but="ogg")
        found = _up_to(ogg.examine(content[:end] if end else content), begin, end)
    elif beginning.startswith(flac.MAGIC):
        content = _content(file, begin)
        end = headers.find(content, flac.after_blocks(content), but="flac")
        found = _up_to(flac.examine(content[:end] if end else content), begin, end)
    else:
        found = chunked.examine(file, begin)
    if found.format:
        return found
    if name := media.format_of(beginning):
        return Layout(name, end=_end_of_media(file, begin, name))
    if is_text(beginning):
        return Layout("")
    content = _content(file, begin)
    found = _mpeg(content, begin, 0)
    if not found.format and ogg.MAGIC in content:
        found = ogg.examine(content)
    return found


def _mpeg(content: bytes, begin: int, after: int) -> Layout:
    """Looks at MPEG audio whose tags end at `after`."""
    found = mpeg.examine(content)
    end = headers.find(content, after + 1, but="mp3")
    if not end:
        return found
    before = mpeg.examine(content[:end])
    return _up_to(before, begin, end) if before.format else found


def _up_to(found: Layout, begin: int, end: int) -> Layout:
    return found._replace(end=begin + end) if end else found


def _end_of_media(file: IO[bytes], begin: int, name: str) -> int:
    """Where another file begins behind one that PyAV reads; 0 if none is found."""
    if name == "aac":
        end = headers.find(_content(file, begin), 1, but="aac")
        return begin + end if end else 0
    ends = {"mp4": media.end_of_mp4, "webm or Matroska": media.end_of_matroska}
    end = ends[name](file, begin) if name in ends else 0
    return end if end and headers.begins(file, end) else 0


def is_text(beginning: bytes) -> bool:
    """Whether a file begins with letters: a page of a web server, a pointer, a table."""
    try:
        text = beginning.decode("utf-8")
    except UnicodeDecodeError as error:
        # A letter may be cut at the end.
        if error.start < len(beginning) - 3:
            return False
        text = beginning[: error.start].decode("utf-8")
    return bool(text) and all(letter.isprintable() or letter in "\t\r\n" for letter in text)


def _content(file: IO[bytes], begin: int = 0, end: int = 0) -> bytes:
    """Bytes of a file up to `end`, or all if that is 0."""
    file.seek(begin)
    return file.read(end - begin) if end else file.read()
