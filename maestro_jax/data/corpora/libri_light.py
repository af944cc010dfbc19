"""Libri-Light (Kahn et al., 2020): books read in English, without transcripts, and ten hours with.

`small`, `medium` and `large` hold `<speaker>/<book>/<chapter>.flac`, up to hours long, and beside
each file a `.json` whose `voice_activity` lists the beginnings and ends of what is spoken, in
seconds. They do not overlap; the 60 thousand hours of papers are all three. `limited` is
`librispeech_finetuning`: `1h/<fold>` and `9h`, each with `clean` and `other` as in LibriSpeech.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from maestro_jax.data.corpora import limited
from maestro_jax.data.corpora.chapters import read_chapters
from maestro_jax.data.corpora.corpus import Corpus, choose
from maestro_jax.data.corpora.problems import Problems
from maestro_jax.data.corpora.utterance import Span, Utterance
from maestro_jax.errors import UserError

SIZES = ("small", "medium", "large")
LIMITED = "limited"
LIMITED_DIRECTORY = "librispeech_finetuning"
LONGEST_SECONDS = 30.0
"""No utterance is longer; Libri-Light's own script cuts at 30 or 60 seconds."""


class LibriLight(Corpus):
    """Three sizes of untranscribed speech, and `limited`, each a config.

    The published hours are not shown beside the prepared ones: they count the silence.
    """

    name = "libri_light"
    title = f"Libri-Light: a directory with small, medium, large or {LIMITED_DIRECTORY}"
    splits = ("train", *limited.SPLITS)

    def configs(self, source: Path, languages: Sequence[str] = ()) -> list[str]:
        """The parts that are there; a wanted one is named itself, `en` is all; see `Corpus`."""
        there = [size for size in SIZES if (source / size).is_dir()]
        if (source / LIMITED_DIRECTORY).is_dir():
            there.append(LIMITED)
        wanted = [] if "en" in languages else languages
        return choose(there, wanted, source, "parts of Libri-Light")

    def utterances(self, source: Path, config: str, problems: Problems) -> Iterator[Utterance]:
        """Pieces of the books, or the transcribed utterances; see `Corpus`."""
        if config != LIMITED:
            yield from _books(source / config, problems)
            return
        directories = [source / LIMITED_DIRECTORY / "1h" / str(fold) for fold in range(6)]
        directories.append(source / LIMITED_DIRECTORY / "9h")
        for directory, split in zip(directories, limited.SPLITS, strict=True):
            for quality in ("clean", "other"):
                yield from read_chapters(directory / quality, split, problems)


def cut(pieces: Sequence[Span], longest: float) -> list[tuple[Span, ...]]:
    """Joins what is spoken to utterances of a bounded length, and cuts what is longer.

    Args:
        pieces: Begin and end of each, in seconds, in their order.
        longest: Seconds of speech that an utterance may have; the silence between its pieces is
            left out, as Libri-Light's own script does.

    Returns:
        The pieces of every utterance: as many as fit, and equal shares of a piece that does not.
    """
    utterances: list[tuple[Span, ...]] = []
    collected: list[Span] = []
    length = 0.0
    for begin, end in pieces:
        shares = max(1, math.ceil((end - begin) / longest - 1e-9))
        share = (end - begin) / shares
        for number in range(shares):
            if collected and length + share > longest + 1e-6:
                utterances.append(tuple(collected))
                collected, length = [], 0.0
            last = end if number == shares - 1 else begin + (number + 1) * share
            collected.append((begin + number * share, last))
            length += share
    if collected:
        utterances.append(tuple(collected))
    return utterances


def _books(directory: Path, problems: Problems) -> Iterator[Utterance]:
    """The utterances of all books, speaker by speaker."""
    for book in sorted(path for path in directory.glob("*/*") if path.is_dir()):
        described = sorted(book.glob("*.json"))
        names = {path.stem for path in described}
        for audio in sorted(book.glob("*.flac")):
            if audio.stem not in names:
                detail = f"there is no .json beside {audio}"
                item = f"{book.parent.name}/{book.name}/{audio.stem}"
                problems.add("no counterpart", split="train", item=item, detail=detail)
        for path in described:
            yield from _chapter(path, problems)


def _chapter(path: Path, problems: Problems) -> Iterator[Utterance]:
    """The utterances of one audio file."""
    speaker, book = path.parent.parent.name, path.parent.name
    name = f"{speaker}/{book}/{path.stem}"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be opened: {error.strerror or error}.") from error
    except ValueError as error:
        problems.add("bad row", split="train", item=name, detail=f"no JSON: {error}")
        return
    pieces = record.get("voice_activity") if isinstance(record, dict) else None
    if not isinstance(pieces, list):
        problems.add("bad value", split="train", item=name, detail="no list voice_activity")
        return
    if not pieces:
        problems.add("empty audio", split="train", item=name, detail="no voice activity")
    spoken = _spoken(pieces, name, problems)
    for number, spans in enumerate(cut(spoken, LONGEST_SECONDS)):
        yield Utterance(
            id=f"{name}/{number:04d}",
            split="train",
            language="en",
            audio=str(path.with_suffix(".flac")),
            spans=spans,
            speaker=str(record.get("speaker") or speaker),
        )


def _spoken(pieces: list[object], name: str, problems: Problems) -> list[Span]:
    """The pieces that mean something."""
    spoken: list[Span] = []
    for number, piece in enumerate(pieces):
        after = spoken[-1][1] if spoken else 0.0
        try:
            begin, end = (float(at) for at in piece)  # type: ignore[attr-defined]
        except (TypeError, ValueError):
            begin = end = math.nan
        # Comparisons with NaN are false.
        if after <= begin < end < math.inf:
            spoken.append((begin, end))
        else:
            detail = f"voice_activity {piece} after {after:.2f} seconds"
            problems.add("bad value", split="train", item=f"{name}#{number}", detail=detail)
    return spoken
