"""How a file of audio is built: what has to be decoded, and what its headers state."""

from __future__ import annotations

from typing import NamedTuple


class Finding(NamedTuple):
    """Something about a recording that its user should know.

    Attributes:
        kind: A key of `maestro_jax.data.corpora.issues.ISSUE_KINDS`.
        detail: What was found, without the name of the file.
    """

    kind: str
    detail: str


class Piece(NamedTuple):
    """A stream that is decoded at one go.

    Attributes:
        content: A file of its own, in memory; None where the file is decoded as it lies there.
        stated: How long it is according to its header, in the unit of `present`; 0 if the header
            does not say.
        present: How much of that was found.
        frames: Samples of a channel that decoding should give; None for what the decoder counts
            itself, -1 where nothing can be expected.
        format: As that of the layout, where files of several formats follow one another.
    """

    content: bytes | None = None
    stated: float = 0
    present: float = 0
    frames: int | None = None
    format: str = ""


class Layout(NamedTuple):
    """What a look through a file finds before anything is decoded.

    Attributes:
        format: What it is, as messages call it: `wav`, `ogg`, `mp3`; empty for what is not known.
        pieces: What has to be decoded, one after the other.
        findings: What is wrong with it.
        is_indexed: Whether a decoder finds a time in it.
        end: Where another file begins behind it; 0 if there is none.
    """

    format: str
    pieces: tuple[Piece, ...] = (Piece(),)
    findings: tuple[Finding, ...] = ()
    is_indexed: bool = True
    end: int = 0

    @property
    def is_seekable(self) -> bool:
        """Whether a decoder finds a time by itself: one piece, with a header that is right."""
        return self.is_indexed and len(self.pieces) == 1 and self.pieces[0].content is None
