"""Reads audio files of any length, one chunk at a time.

The samples are those of `maestro_jax.audio.reading.read_recording`, in constant memory: libsndfile
decodes long files in blocks. Files that are short, or of which libsndfile does not read everything,
are read as a whole.
"""

from __future__ import annotations

import functools
from collections.abc import Generator, Iterator
from pathlib import Path

import numpy as np
import soundfile
import soxr

from maestro_jax.audio import levels
from maestro_jax.audio.containers.examine import examine
from maestro_jax.audio.containers.layout import Finding
from maestro_jax.audio.reading import Recording, not_finite, read_recording
from maestro_jax.batches import SAMPLE_RATE

LONG = 300.0
"""Least duration, in seconds, of a file that is decoded in blocks."""

_CHUNK = 30  # seconds
# Seconds by which libsndfile's count may differ from the decoded length: encoders have a delay.
_GRACE = 0.1
_MOST_PER_BYTE = 100
_SMALL = 300_000
"""Bytes of five minutes at 8 kbit/s, a rate below that of any speech codec."""
_BYTES_PER_SECOND = 32_000


class _Sequential(soundfile.SoundFile):
    """A file that is read sequentially.

    soundfile seeks after each read, to the decoder's current position. In MP3, where a frame needs
    bits of the frames before it, such a seek is audible.
    """

    def seekable(self) -> bool:
        """Returns False, so that soundfile does not seek after reads."""
        return False


def audio_chunks(path: str | Path) -> Iterator[Recording]:
    """Reads a file from its beginning to its end.

    Args:
        path: The file, of any format that `read_recording` reads.

    Yields:
        Up to half a minute at a time. Findings come with the first chunk for which they hold, each
        kind once; that the whole file is silent, with the last one.

    Raises:
        UserError: As from `read_recording`; also after some chunks.
    """
    path = Path(path).expanduser()
    done = 0
    reported: set[str] = set()
    if _decodes_in_blocks(path):
        blocks = _blocks(path)
        while True:
            try:
                recording = next(blocks)
            except StopIteration as end:
                if end.value:
                    return
                break
            if not np.isfinite(recording.samples).all():
                raise not_finite(path)
            done += len(recording.samples)
            yield _once(recording, reported)
    samples, findings = read_recording(path)
    step = _CHUNK * SAMPLE_RATE
    for at in range(done, max(len(samples), done + 1), step):
        yield _once(Recording(samples[at : at + step], findings), reported)


def _once(recording: Recording, reported: set[str]) -> Recording:
    """Removes findings of kinds that have been reported."""
    fresh = tuple(one for one in recording.findings if one.kind not in reported)
    reported.update(one.kind for one in fresh)
    return recording._replace(findings=fresh)


def stated_seconds(path: str | Path) -> float:
    """Estimates the duration of a file from its header, or from its size if the file is small.

    Args:
        path: A file of any kind, or what is none.

    Returns:
        Seconds; 0 if unknown.
    """
    path = Path(path).expanduser()
    try:
        status = path.stat()
        if status.st_size < _SMALL:
            return status.st_size / _BYTES_PER_SECOND
        return _looked_at(path, status.st_size, status.st_mtime_ns)[0]
    except OSError:
        return 0.0


def _decodes_in_blocks(path: Path) -> bool:
    """Tells whether a file is long and libsndfile alone reads all of it."""
    try:
        status = path.stat()
        small = not path.is_file() or status.st_size < _SMALL
        return not small and _looked_at(path, status.st_size, status.st_mtime_ns)[1]
    except OSError:
        return False


@functools.lru_cache(maxsize=1024)
def _looked_at(path: Path, size: int, changed: int) -> tuple[float, bool]:
    """Returns the seconds by the header, and whether to decode in blocks."""
    del changed
    with path.open("rb") as file:
        layout = examine(file)
    if not layout.format:
        # libsndfile would try MP3, and libmpg123 would write to the terminal.
        return 0.0, False
    try:
        stated = soundfile.info(path)
    except (soundfile.LibsndfileError, RuntimeError, TypeError):
        return 0.0, False
    if stated.frames > size * _MOST_PER_BYTE:
        return 0.0, False
    as_stated = layout.is_seekable and not layout.findings
    as_stated = as_stated and layout.pieces[0].stated == layout.pieces[0].present
    # The level of floats depends on the whole file.
    floats = levels.is_of_whole_file(stated.subtype)
    return stated.duration, as_stated and not floats and stated.duration >= LONG


def _blocks(path: Path) -> Generator[Recording, None, bool]:
    """Yields the file in chunks; returns whether they are all that there is."""
    silent: list[tuple[Finding, ...]] = []
    with _Sequential(path) as file:
        rate, frames = file.samplerate, 0
        resampler = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32", quality="HQ")
        given = 0
        while True:
            try:
                block = file.read(_CHUNK * rate, dtype="float32", always_2d=True)
            except soundfile.LibsndfileError:
                return False
            frames += len(block)
            if not len(block):
                break
            if frames == len(block) and levels.may_be_shifted(block, file.subtype):
                # Whether to scale depends on the rest of the file.
                return False
            # Quiet blocks of other files are not scaled.
            samples, of_level = levels.fit_level(block, "")
            samples, of_mix = levels.mix(samples)
            is_silent = levels.silence(samples)
            # The file is silent only if all blocks are; one block that is not decides it.
            silent = [*silent[:1], is_silent] if all(silent) else silent
            if rate != SAMPLE_RATE:
                samples = resampler.resample_chunk(np.ascontiguousarray(samples))
            given += len(samples)
            yield Recording(samples, (*of_level, *of_mix))
        if abs(file.frames - frames) > _GRACE * rate:
            return False
        length = -(-frames * SAMPLE_RATE // rate)
        rest = np.zeros(0, np.float32)
        if rate != SAMPLE_RATE:
            rest = resampler.resample_chunk(rest, last=True)
        rest = np.pad(rest, (0, max(0, length - given - len(rest))))[: max(0, length - given)]
        yield Recording(rest, silent[0] if silent and all(silent) else ())
    return True
