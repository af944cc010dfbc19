"""The directories of LibriSpeech: `<speaker>/<chapter>/` with flac files and one transcript file.

Every line of `<speaker>-<chapter>.trans.txt` is the name of a file without its ending, a space,
and the words in upper case.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from maestro_jax.data.corpora import tables
from maestro_jax.data.corpora.plain_text import plain_text
from maestro_jax.data.corpora.problems import Problems
from maestro_jax.data.corpora.utterance import Utterance


def read_chapters(directory: Path, split: str, problems: Problems) -> Iterator[Utterance]:
    """All utterances below a directory of speakers, speaker by speaker.

    Args:
        directory: It holds `<speaker>/<chapter>/`.
        split: Of the utterances.
        problems: Takes audio files without a transcript.

    Raises:
        UserError: A transcript file cannot be read.
    """
    for chapter in sorted(path for path in directory.glob("*/*") if path.is_dir()):
        speaker = chapter.parent.name
        transcripts = chapter / f"{speaker}-{chapter.name}.trans.txt"
        unnamed = {path.stem for path in chapter.glob("*.flac")}
        for _, line in tables.lines(transcripts) if transcripts.is_file() else ():
            name, _, raw_text = line.strip().partition(" ")
            if not name:
                continue
            unnamed.discard(name)
            yield Utterance(
                id=name,
                split=split,
                language="en",
                audio=str(chapter / f"{name}.flac"),
                text=plain_text(raw_text),
                raw_text=raw_text,
                speaker=speaker,
                needs=("text",),
            )
        for name in sorted(unnamed):
            detail = f"audio without a line in {transcripts}"
            problems.add("no counterpart", split=split, item=name, detail=detail)
