"""Describes the layout of audio files: what to decode, and what their headers state."""

from __future__ import annotations

from typing import IO, NamedTuple


class Finding(NamedTuple):
    """Something about a recording that its user should know.

    Attributes:
        kind: A key of `maestro_jax.data.corpora.issues.ISSUE_KINDS`.
        detail: Details, without the name of the file.
    """

    kind: str
    detail: str


class Piece(NamedTuple):
    """A stream that is decoded in one go.

    Attributes:
        content: The stream as a file in memory; None if the file is decoded as it is.
        stated: Length according to the header, in the unit of `present`; 0 if it states none.
        present: Length that is present.
        frames: Expected samples per channel; None for the decoder's own count, -1 if unknown.
        format: Format of this piece if files of several formats are concatenated.
    """

    content: bytes | None = None
    stated: float = 0
    present: float = 0
    frames: int | None = None
    format: str = ""


class Layout(NamedTuple):
    """What is known of a file before anything is decoded.

    Attributes:
        format: Name of the format for messages, such as `wav`, `ogg`, `mp3`; empty if unknown.
        pieces: The streams to decode, in order.
        findings: Problems of the file.
        is_indexed: Whether a decoder can seek in it.
        end: Position of another file after it; 0 if there is none.
    """

    format: str
    pieces: tuple[Piece, ...] = (Piece(),)
    findings: tuple[Finding, ...] = ()
    is_indexed: bool = True
    end: int = 0

    @property
    def is_seekable(self) -> bool:
        """Whether a decoder can seek in it: one piece, whose header is right."""
        return self.is_indexed and len(self.pieces) == 1 and self.pieces[0].content is None


def read_range(file: IO[bytes], begin: int, end: int | None = None) -> bytes:
    """Reads the bytes of a file from `begin` up to `end`, or to the end of the file."""
    file.seek(begin)
    return file.read() if end is None else file.read(end - begin)
