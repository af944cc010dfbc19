"""Which container a file is, and how it is built."""

from __future__ import annotations

import io
from typing import IO

from maestro_jax.data.containers import chunked, flac, media, mpeg, ogg, wav
from maestro_jax.data.containers.layout import Layout

# Bytes in which text is told from audio.
_BEGINNING = 512


def examine(file: IO[bytes]) -> Layout:
    """Looks through a file, by its content and never by its name.

    Args:
        file: Open for reading, at any place.

    Returns:
        Its layout, of no format if it is none that is known.
    """
    file.seek(0)
    beginning = file.read(_BEGINNING)
    if beginning.startswith(b"ID3"):
        content = _content(file)
        rest = content[mpeg.after_tags(content) :]
        found = mpeg.examine(content) if mpeg.begins(rest) else _examine(io.BytesIO(rest))
        # Not every decoder passes over the tags of another format.
        pieces = (piece._replace(content=piece.content or rest) for piece in found.pieces)
        return found if mpeg.begins(rest) else found._replace(pieces=tuple(pieces))
    return _examine(file)


def _examine(file: IO[bytes]) -> Layout:
    file.seek(0)
    beginning = file.read(_BEGINNING)
    if beginning.startswith(wav.MAGICS):
        found = wav.examine(file)
    elif beginning.startswith(ogg.MAGIC):
        found = ogg.examine(_content(file))
    elif beginning.startswith(flac.MAGIC):
        found = flac.examine(_content(file))
    else:
        found = chunked.examine(file)
    if found.format:
        return found
    if name := media.format_of(beginning):
        return Layout(name)
    if is_text(beginning):
        return Layout("")
    content = _content(file)
    found = mpeg.examine(content)
    if not found.format and ogg.MAGIC in content:
        found = ogg.examine(content)
    return found


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


def _content(file: IO[bytes]) -> bytes:
    file.seek(0)
    return file.read()
