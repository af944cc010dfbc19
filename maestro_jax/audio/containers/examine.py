"""Determines the container and the layout of a file."""

from __future__ import annotations

import io
from typing import IO

from maestro_jax.audio.containers import chunked, flac, headers, media, mpeg, ogg, wav
from maestro_jax.audio.containers.layout import Finding, Layout, read_range

# Number of bytes that distinguish text from audio.
_BEGINNING = 512


def examine(file: IO[bytes]) -> Layout:
    """Determines the layout of a file by its content, never by its name.

    Files that lie behind one another, of one format or of several, are pieces of one layout.

    Args:
        file: Open for reading, at any place.

    Returns:
        Its layout, of no format if it is none that is known.
    """
    layouts = [(0, _examine(file, 0))]
    while (end := layouts[-1][1].end) > layouts[-1][0]:
        layouts.append((end, _examine(file, end)))
    first = layouts[0][1]
    if len(layouts) == 1:
        return first
    pieces = tuple(
        piece._replace(
            content=read_range(file, at, layout.end or None)
            if piece.content is None
            else piece.content,
            format=layout.format,
        )
        for at, layout in layouts
        for piece in layout.pieces
    )
    names = " and ".join(dict.fromkeys(layout.format or "unknown" for _, layout in layouts[1:]))
    count = len(layouts) - 1
    detail = (
        f"another {names} file lies behind it, which is read as well"
        if count == 1
        else f"{count} other files ({names}) lie behind it, which are read as well"
    )
    findings = [finding for _, layout in layouts for finding in layout.findings]
    once = dict.fromkeys([Finding("header mismatch", detail), *findings])
    return Layout(first.format, pieces, tuple(once))


def _examine(file: IO[bytes], begin: int) -> Layout:
    """Examines the file at `begin`, up to another file after it."""
    file.seek(begin)
    beginning = file.read(_BEGINNING)
    if not beginning.startswith(b"ID3"):
        return _untagged(file, begin)
    content = read_range(file, begin)
    after = mpeg.after_tags(content)
    rest = content[after:]
    if mpeg.begins(rest):
        return _mpeg(content, begin, after)
    layout = _untagged(io.BytesIO(rest), 0)
    # Not every decoder skips the tags of another format.
    whole = rest[: layout.end or len(rest)]
    pieces = (
        piece._replace(content=whole if piece.content is None else piece.content)
        for piece in layout.pieces
    )
    end = begin + after + layout.end if layout.end else 0
    return layout._replace(pieces=tuple(pieces), end=end)


def _untagged(file: IO[bytes], begin: int) -> Layout:
    file.seek(begin)
    beginning = file.read(_BEGINNING)
    if beginning.startswith(wav.MAGICS):
        layout = wav.examine(file, begin)
    elif beginning.startswith(ogg.MAGIC):
        content = read_range(file, begin)
        end = headers.find(content, 1, but="ogg")
        layout = _up_to(ogg.examine(content[:end] if end else content), begin, end)
    elif beginning.startswith(flac.MAGIC):
        content = read_range(file, begin)
        end = headers.find(content, flac.after_blocks(content), but="flac")
        layout = _up_to(flac.examine(content[:end] if end else content), begin, end)
    else:
        layout = chunked.examine(file, begin)
    if layout.format:
        return layout
    if name := media.format_of(beginning):
        return Layout(name, end=_end_of_media(file, begin, name))
    if is_text(beginning):
        return Layout("")
    content = read_range(file, begin)
    layout = _mpeg(content, begin, 0)
    if not layout.format and ogg.MAGIC in content:
        layout = ogg.examine(content)
    return layout


def _mpeg(content: bytes, begin: int, after: int) -> Layout:
    """Examines MPEG audio whose tags end at `after`."""
    layout = mpeg.examine(content)
    end = headers.find(content, after + 1, but="mp3")
    if not end:
        return layout
    before = mpeg.examine(content[:end])
    return _up_to(before, begin, end) if before.format else layout


def _up_to(layout: Layout, begin: int, end: int) -> Layout:
    return layout._replace(end=begin + end) if end else layout


def _end_of_media(file: IO[bytes], begin: int, name: str) -> int:
    """Finds where another file begins after one that PyAV reads; 0 if there is none."""
    if name == "aac":
        end = headers.find(read_range(file, begin), 1, but="aac")
        return begin + end if end else 0
    ends = {"mp4": media.end_of_mp4, "webm or Matroska": media.end_of_matroska}
    end = ends[name](file, begin) if name in ends else 0
    return end if end and headers.begins(file, end) else 0


def is_text(beginning: bytes) -> bool:
    """Tells whether a file begins with text: an HTML page, a pointer file, a table."""
    try:
        text = beginning.decode("utf-8")
    except UnicodeDecodeError as error:
        # The last character may be cut off.
        if error.start < len(beginning) - 3:
            return False
        text = beginning[: error.start].decode("utf-8")
    return bool(text) and all(letter.isprintable() or letter in "\t\r\n" for letter in text)
