"""What a corpus says of one utterance, before any audio is read."""

from __future__ import annotations

import dataclasses

Span = tuple[float, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Utterance:
    """One line of a corpus; what it does not have is empty.

    Attributes:
        id: Unique within its split.
        split: `train`, `validation`, `test`, or what the corpus has besides.
        language: ISO 639-1 code of what is spoken or written.
        audio: The file, in any container that `maestro_jax.audio.reading` reads; empty for text.
        spans: Begin and end in seconds of the pieces of the file that make up the utterance, in
            their order; None for the whole file.
        text: As models read and write it, normalised as VoxPopuli does.
        raw_text: As the corpus has it.
        translation: Into the language that the config of the corpus names, with case and
            punctuation.
        speaker: The corpus' name for who speaks.
        needs: Which of `text` and `translation` must not be empty, for the utterance to be of use.
    """

    id: str
    split: str
    language: str
    audio: str = ""
    spans: tuple[Span, ...] | None = None
    text: str = ""
    raw_text: str = ""
    translation: str = ""
    speaker: str = ""
    needs: tuple[str, ...] = ()
