"""Listens to every recording of a directory once, and says which ones are bad.

What is measured of a recording is kept in a file, so that a second start does not listen again.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import math
import os
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from maestro_jax.audio.reading import EmptyAudioError, read_recording
from maestro_jax.batches import SAMPLE_RATE
from maestro_jax.data.corpora.speech_directory import Entry
from maestro_jax.errors import UserError
from maestro_jax.progress import Progress
from maestro_jax.text.normalizers import normalize

if TYPE_CHECKING:
    from maestro_jax.data.processes import Processes

_AT_ONCE = 32

NOTHING_BAD = "no bad recordings"
QUIET_DB = -65.0
"""Level in dB of full scale below which a recording counts as silent."""
CLIPPED = 0.01
"""Fraction of samples at full scale from which a recording counts as clipped."""
CLIPPED_BADLY = 0.1
"""Fraction of samples at full scale from which it is left out."""
SLOW, SLOW_SECONDS = 6.0, 3.0
"""How many times slower than the median speech is too long for its text, if by so many seconds."""
FAST = 3.0
"""How many times faster than the median speech a text is too long for its audio."""
CHARACTERS_PER_SECOND = 40.0
"""Nobody says more characters in a second, in any language."""
_TOO_LONG = "too long"
_HARMLESS = ("cut short", "damaged audio", "cancelled channels", "several tracks")
SHORTEST, LONGEST = 0.1, 24.0
"""Seconds of the shortest and the longest transcribed recording that is trained on."""


class Measured(NamedTuple):
    """What was heard.

    Attributes:
        seconds: Length; 0 if nothing can be decoded.
        level: Root mean square in dB of full scale.
        clipped: Fraction of the samples at full scale.
        findings: Kind and detail of what is wrong with the file.
    """

    seconds: float
    level: float
    clipped: float
    findings: tuple[tuple[str, str], ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bad:
    """A recording that something is wrong with.

    Attributes:
        entry: The entry.
        kind: What is wrong.
        detail: The figures.
        kept: Whether it is used all the same.
    """

    entry: Entry
    kind: str
    detail: str
    kept: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Heard:
    """An entry and the length of its recording.

    Attributes:
        entry: The entry.
        seconds: Length of the recording; 0 for a text.
    """

    entry: Entry
    seconds: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Survey:
    """The usable entries of a directory, and the bad ones.

    Attributes:
        heard: Entries to use.
        bad: Entries with something wrong, those that are kept included.
    """

    heard: tuple[Heard, ...]
    bad: tuple[Bad, ...]

    def bad_table(self) -> str:
        """Returns the bad recordings as tab-separated lines with a header."""
        rows = [("kind", "used", "split", "id", "file", "detail")]
        rows += [
            (
                each.kind,
                "yes" if each.kept else "no",
                each.entry.split,
                each.entry.id,
                each.entry.audio,
                each.detail,
            )
            for each in self.bad
        ]
        return "".join("\t".join(" ".join(cell.split()) for cell in row) + "\n" for row in rows)

    def bad_summary(self) -> str:
        """Returns the number of bad recordings of each kind, in one line."""
        if not self.bad:
            return NOTHING_BAD
        counts: dict[str, int] = {}
        for each in self.bad:
            kind = f"{each.kind} (used)" if each.kept else each.kind
            counts[kind] = counts.get(kind, 0) + 1
        listed = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
        return f"{len(self.bad)} bad recording{'s' * (len(self.bad) > 1)}: {listed}"


def survey(entries: Sequence[Entry], cache: Path, processes: Processes) -> Survey:
    """Measures all recordings, and judges them.

    Args:
        entries: Recordings and texts.
        cache: File of what was measured before; it is written.
        processes: Processes that read audio.
    """
    known = _read_cache(cache)
    spoken = [entry for entry in entries if entry.audio]
    missing = [entry for entry in spoken if _key(entry) not in known]
    chunks = [missing[at : at + _AT_ONCE] for at in range(0, len(missing), _AT_ONCE)]
    cache.parent.mkdir(parents=True, exist_ok=True)
    requests = [([(entry.audio, entry.span) for entry in chunk],) for chunk in chunks]
    with Progress(len(missing), "listening", unit="recording") as progress, cache.open("a") as file:
        for chunk, answers in zip(chunks, processes.results(measure, requests), strict=True):
            for entry, answer in zip(chunk, answers, strict=True):
                known[_key(entry)] = answer
                file.write(json.dumps([_key(entry), *answer]) + "\n")
            file.flush()
            progress.update(len(chunk))
    return judge(entries, [known[_key(entry)] if entry.audio else None for entry in entries])


def measure(parts: Sequence[tuple[str, tuple[float, float] | None]]) -> list[Measured]:
    """Reads some recordings; runs in a process of its own.

    Args:
        parts: Path and part of each.
    """
    return [_measure(path, span) for path, span in parts]


def _measure(path: str, span: tuple[float, float] | None) -> Measured:
    def failed(kind: str, detail: str) -> Measured:
        return Measured(0.0, -np.inf, 0.0, ((kind, detail),))

    # Unlike Path.is_file, it refuses no name: a sentence may stand where a path should.
    if not os.path.isfile(path):
        return failed("missing audio", path)
    try:
        samples, findings = read_recording(path, None if span is None else [span])
    except EmptyAudioError as error:
        return failed("empty audio" if span is None else "outside of audio", str(error))
    except UserError as error:
        empty = os.path.getsize(path) == 0
        return failed("empty audio" if empty else "unreadable audio", str(error))
    power = float(np.mean(np.square(samples, dtype=np.float64)))
    peak = float(np.abs(samples).max())
    # A recording may have been clipped before it was made quieter: what counts is its own peak.
    clipped = float(np.mean(np.abs(samples) >= 0.999 * peak)) if peak > 0.5 else 0.0
    level = 10 * np.log10(power) if power > 0 else -np.inf
    kinds = tuple((one.kind, one.detail) for one in findings)
    return Measured(len(samples) / SAMPLE_RATE, float(max(level, -200.0)), clipped, kinds)


def judge(entries: Sequence[Entry], measured: Sequence[Measured | None]) -> Survey:
    """Separates what can be used from what is bad; see the constants of this module.

    Test and validation utterances are left out only if nothing can be heard in them, or nothing is
    written that could be scored: their scores are those of the whole set. Texts and recordings that
    have no counterpart are trained on only if they are not of these sets.

    Args:
        entries: All entries.
        measured: What was heard of each; None for texts.
    """
    rates: dict[str, list[float]] = collections.defaultdict(list)
    for entry, each in zip(entries, measured, strict=True):
        if each is not None and each.seconds > 0 and entry.text:
            rates[entry.language].append(len(entry.text) / each.seconds)
    # Chinese has a third of the characters of English.
    medians = {language: statistics.median(each) for language, each in rates.items()}
    heard, bad = [], []
    for entry, each in zip(entries, measured, strict=True):
        problems = [*_of_text(entry)]
        if each is not None:
            problems += _problems(entry, each, medians.get(entry.language, 0.0))
        held_out = entry.split in ("validation", "test")
        usable = True
        for kind, detail, serious, useless in problems:
            kept = not useless and (held_out or not serious)
            usable = usable and kept
            bad.append(Bad(entry=entry, kind=kind, detail=detail, kept=kept))
        seconds = 0.0 if each is None else each.seconds
        if usable:
            heard.append(Heard(entry=entry, seconds=seconds))
        elif {kind for kind, *_ in problems if kind not in _HARMLESS} == {_TOO_LONG}:
            # Good for pretraining, which takes speech and text apart.
            heard += _apart(Heard(entry=entry, seconds=seconds))
    return Survey(heard=tuple(heard), bad=tuple(bad))


def _apart(heard: Heard) -> list[Heard]:
    """Returns a recording without its text, and the text without its recording."""
    entry = heard.entry
    speech = dataclasses.replace(entry, text="", translation="")
    text = dataclasses.replace(entry, id=f"{entry.id}@text", audio="", span=None, translation="")
    return [Heard(entry=speech, seconds=heard.seconds)] + [Heard(entry=text, seconds=0.0)] * bool(
        entry.text
    )


def _of_text(entry: Entry) -> Iterator[tuple[str, str, bool, bool]]:
    """Yields what is wrong with the texts of an entry; see `_problems`."""
    paired = entry.audio and (entry.text or entry.translation)
    if entry.split in ("validation", "test") and not paired:
        lacks = "text" if entry.audio else "recording"
        yield f"no {lacks}", f"of the {entry.split} set, so that it is not trained on", True, True
    elif entry.text and not normalize(entry.text, entry.language):
        yield "empty text", f"{entry.text[:40]!r} has no letter or digit", True, True


def _problems(entry: Entry, each: Measured, rate: float) -> Iterator[tuple[str, str, bool, bool]]:
    """Yields kind, detail, whether it spoils training, and whether it spoils a test as well."""
    nothing = ("missing audio", "empty audio", "outside of audio", "unreadable audio")
    for kind, detail in each.findings:
        if kind in (*nothing, "silent audio"):
            yield kind, detail, True, True
        elif kind in _HARMLESS:
            yield kind, detail, False, False
    if each.seconds <= 0 or any(kind == "silent audio" for kind, _ in each.findings):
        return
    if each.level < QUIET_DB:
        yield "silent audio", f"a level of {each.level:.0f} dB", True, True
        return
    if each.clipped >= CLIPPED:
        detail = f"{each.clipped:.1%} of the samples are at full scale"
        yield "clipped audio", detail, each.clipped >= CLIPPED_BADLY, False
    if each.seconds < SHORTEST:
        yield "too short", f"{each.seconds:.2f} s", True, False
    if each.seconds > LONGEST and (entry.text or entry.translation):
        detail = f"{each.seconds:.0f} s, more than {LONGEST:.0f}: pretraining uses speech and text"
        yield _TOO_LONG, f"{detail} apart; offset and duration could divide it", True, False
    if not entry.text or not rate:
        return
    characters = len(entry.text)
    own, expected = characters / each.seconds, characters / rate
    detail = f"{characters} characters in {each.seconds:.1f} s; the median is {rate:.1f} a second"
    if own > CHARACTERS_PER_SECOND or own > FAST * rate:
        yield "text too long for its audio", detail, True, False
    elif own < rate / SLOW and each.seconds - expected > SLOW_SECONDS:
        yield "audio too long for its text", detail, True, False


def pieces(heard: Heard) -> list[Heard]:
    """Divides a long recording without a transcript into pieces of at most `LONGEST` seconds."""
    count = math.ceil(heard.seconds / LONGEST)
    if count <= 1:
        return [heard]
    entry, length = heard.entry, heard.seconds / count
    begin = entry.span[0] if entry.span is not None else 0.0
    return [
        Heard(
            entry=dataclasses.replace(
                entry,
                # Another sign than that of ids that came twice.
                id=f"{entry.id}@{number + 1}",
                span=(begin + number * length, begin + (number + 1) * length),
            ),
            seconds=length,
        )
        for number in range(count)
    ]


def _key(entry: Entry) -> str:
    """Returns what tells a recording, or a part of it, from others and from an earlier version."""
    try:
        status = os.stat(entry.audio)
        stamp = f"{status.st_size}:{status.st_mtime_ns}"
    # No file, or no name of one.
    except (OSError, ValueError):
        stamp = "missing"
    return f"{entry.audio}|{entry.span}|{stamp}"


def _read_cache(path: Path) -> dict[str, Measured]:
    """Reads what was measured before; a line that was cut short by an interrupt is left out."""
    known: dict[str, Measured] = {}
    if not path.is_file():
        return known
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            key, seconds, level, clipped, findings = json.loads(line)
        except ValueError:
            continue
        found = tuple((str(kind), str(detail)) for kind, detail in findings)
        known[key] = Measured(seconds, level, clipped, found)
    return known
