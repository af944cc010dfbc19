"""Libri-Light (Kahn et al., 2020): books read in English, without transcripts, and ten hours with.

`small`, `medium` and `large` hold `<speaker>/<book>/<chapter>.flac`, up to hours long, and beside
each file a `.json` whose `voice_activity` lists begin and end of each stretch of speech, in
seconds. The three do not overlap; the 60 thousand hours of papers are all of them. `limited` is
`librispeech_finetuning`: `1h/<fold>` and `9h`, each with `clean` and `other` as in LibriSpeech.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from maestro_jax.data.corpora.corpus import Corpus, Span, Utterance, select
from maestro_jax.data.corpora.issues import IssueLog
from maestro_jax.data.corpora.librispeech import read_chapters
from maestro_jax.errors import UserError

SIZES = ("small", "medium", "large")
LIMITED = "limited"
LIMITED_DIRECTORY = "librispeech_finetuning"
MAX_SECONDS = 30.0
"""Longest utterance. Libri-Light's own script cuts at 30 or 60 seconds."""

# The ten transcribed hours, which Libri-Light and MLS divide alike: six folds of ten minutes, which
# make up an hour, and nine more hours.
FOLDS = tuple(f"train_10min_{fold}" for fold in range(6))
NINE_HOURS = "train_9h"
LIMITED_SPLITS = (*FOLDS, NINE_HOURS)
LIMITED_SUBSETS = {
    "10min": FOLDS[0],
    "1h": "+".join(FOLDS),
    "9h": NINE_HOURS,
    "10h": "+".join(LIMITED_SPLITS),
}
"""Splits of each subset that papers report on. For ten minutes they take the first fold."""


class LibriLight(Corpus):
    """Three sizes of untranscribed speech, and `limited`, each of them a config.

    No published hours are compared, for those of Libri-Light include silence.
    """

    name = "libri_light"
    title = f"Libri-Light: a directory with small, medium, large or {LIMITED_DIRECTORY}"
    splits = ("train", *LIMITED_SPLITS)

    def configs(self, source: Path, languages: Sequence[str] = ()) -> list[str]:
        """Lists the available configs; `en` requests all of them; see `Corpus`."""
        available = [size for size in SIZES if (source / size).is_dir()]
        if (source / LIMITED_DIRECTORY).is_dir():
            available.append(LIMITED)
        requested = [] if "en" in languages else languages
        return select(available, requested, source, "parts of Libri-Light")

    def utterances(self, source: Path, config: str, issues: IssueLog) -> Iterator[Utterance]:
        """Yields the stretches of speech in the books, or the transcribed utterances."""
        if config != LIMITED:
            yield from _read_books(source / config, issues)
            return
        directories = [source / LIMITED_DIRECTORY / "1h" / str(fold) for fold in range(6)]
        directories.append(source / LIMITED_DIRECTORY / "9h")
        for directory, split in zip(directories, LIMITED_SPLITS, strict=True):
            for quality in ("clean", "other"):
                yield from read_chapters(directory / quality, split, issues)


def group_speech(pieces: Sequence[Span], max_seconds: float) -> list[tuple[Span, ...]]:
    """Groups stretches of speech into utterances of limited length.

    Args:
        pieces: Begin and end of each stretch, in seconds, in order.
        max_seconds: Maximum duration of the speech of an utterance. The silence between its pieces
            is left out, as in Libri-Light's own script.

    Returns:
        The pieces of each utterance: as many as fit. A stretch that is too long by itself is
        divided into equal pieces.
    """
    utterances: list[tuple[Span, ...]] = []
    collected: list[Span] = []
    length = 0.0
    for begin, end in pieces:
        # The tolerances keep rounding errors from making another piece or another utterance.
        shares = max(1, math.ceil((end - begin) / max_seconds - 1e-9))
        share = (end - begin) / shares
        for number in range(shares):
            if collected and length + share > max_seconds + 1e-6:
                utterances.append(tuple(collected))
                collected, length = [], 0.0
            last = end if number == shares - 1 else begin + (number + 1) * share
            collected.append((begin + number * share, last))
            length += share
    if collected:
        utterances.append(tuple(collected))
    return utterances


def _read_books(directory: Path, issues: IssueLog) -> Iterator[Utterance]:
    """Yields the utterances of all books, speaker by speaker."""
    for book in sorted(path for path in directory.glob("*/*") if path.is_dir()):
        descriptions = sorted(book.glob("*.json"))
        names = {path.stem for path in descriptions}
        for audio in sorted(book.glob("*.flac")):
            if audio.stem not in names:
                detail = f"there is no .json beside {audio}"
                item = f"{book.parent.name}/{book.name}/{audio.stem}"
                issues.add("no counterpart", split="train", item=item, detail=detail)
        for path in descriptions:
            yield from _read_chapter(path, issues)


def _read_chapter(path: Path, issues: IssueLog) -> Iterator[Utterance]:
    """Yields the utterances of one audio file."""
    speaker, book = path.parent.parent.name, path.parent.name
    name = f"{speaker}/{book}/{path.stem}"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be opened: {error.strerror or error}.") from error
    except ValueError as error:
        issues.add("bad row", split="train", item=name, detail=f"no JSON: {error}")
        return
    pieces = record.get("voice_activity") if isinstance(record, dict) else None
    if not isinstance(pieces, list):
        issues.add("bad value", split="train", item=name, detail="no list voice_activity")
        return
    if not pieces:
        issues.add("empty audio", split="train", item=name, detail="no voice activity")
    speech = _valid_spans(pieces, name, issues)
    for number, spans in enumerate(group_speech(speech, MAX_SECONDS)):
        yield Utterance(
            id=f"{name}/{number:04d}",
            split="train",
            language="en",
            audio=str(path.with_suffix(".flac")),
            spans=spans,
            speaker=str(record.get("speaker") or speaker),
        )


def _valid_spans(pieces: list[object], name: str, issues: IssueLog) -> list[Span]:
    """Returns the spans that are pairs of numbers and do not overlap the previous one."""
    spans: list[Span] = []
    for number, piece in enumerate(pieces):
        after = spans[-1][1] if spans else 0.0
        try:
            begin, end = (float(at) for at in piece)  # type: ignore[attr-defined]
        except (TypeError, ValueError):
            begin = end = math.nan
        # Comparisons with NaN are false.
        if after <= begin < end < math.inf:
            spans.append((begin, end))
        else:
            detail = f"voice_activity {piece} after {after:.2f} seconds"
            issues.add("bad value", split="train", item=f"{name}#{number}", detail=detail)
    return spans
