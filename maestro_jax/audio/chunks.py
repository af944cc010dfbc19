"""Audio files of any length, a chunk at a time.

What `maestro_jax.audio.reading.read_recording` gives for a file, in memory that does not grow with
it: long files are decoded by libsndfile in blocks. A file that is short, or in which that decoder
does not find all there is, is read as a whole.
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
"""Seconds from which on a file is decoded in blocks."""

_CHUNK = 30  # seconds
# Seconds by which libsndfile's count may differ from what it decodes: encoders have a delay.
_GRACE = 0.1
_MOST_PER_BYTE = 100
_SMALL = 300_000
"""Bytes of five minutes at 8 kbit/s, less than any codec of speech takes."""
_BYTES_PER_SECOND = 32_000


class _Sequential(soundfile.SoundFile):
    """A file that is read on and on.

    soundfile seeks after each read to where the decoder is anyway. In MP3, where a frame needs the
    bits of those before it, that is heard.
    """

    def seekable(self) -> bool:
        """Returns False: what is read is not sought afterwards."""
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
    told: set[str] = set()
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
            yield _once(recording, told)
    samples, findings = read_recording(path)
    step = _CHUNK * SAMPLE_RATE
    for at in range(done, max(len(samples), done + 1), step):
        yield _once(Recording(samples[at : at + step], findings), told)


def _once(recording: Recording, told: set[str]) -> Recording:
    """Without findings of kinds that have been told."""
    fresh = tuple(one for one in recording.findings if one.kind not in told)
    told.update(one.kind for one in fresh)
    return recording._replace(findings=fresh)


def stated_seconds(path: str | Path) -> float:
    """How long a file is by its header; by its size, where that is too small to look into it.

    Args:
        path: A file of any kind, or what is none.

    Returns:
        Seconds; 0 where nothing says.
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
    """Whether a file is long, and libsndfile reads it from end to end by itself."""
    try:
        status = path.stat()
        small = not path.is_file() or status.st_size < _SMALL
        return not small and _looked_at(path, status.st_size, status.st_mtime_ns)[1]
    except OSError:
        return False


@functools.lru_cache(maxsize=1024)
def _looked_at(path: Path, size: int, changed: int) -> tuple[float, bool]:
    """Seconds by the header, and whether it is decoded in blocks, until size or time change."""
    del changed
    with path.open("rb") as file:
        layout = examine(file)
    if not layout.format:
        # libsndfile tries whether it is MP3, and libmpg123 writes to the terminal then.
        return 0.0, False
    try:
        stated = soundfile.info(path)
    except (soundfile.LibsndfileError, RuntimeError, TypeError):
        return 0.0, False
    if stated.frames > size * _MOST_PER_BYTE:
        return 0.0, False
    as_stated = layout.is_seekable and not layout.findings
    as_stated = as_stated and layout.pieces[0].stated == layout.pieces[0].present
    # The level of floats is that of the whole file.
    floats = levels.is_of_whole_file(stated.subtype)
    return stated.duration, as_stated and not floats and stated.duration >= LONG


def _blocks(path: Path) -> Generator[Recording, None, bool]:
    """The file in chunks; at the end, whether they are all there is."""
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
                # Whether the rest is as quiet takes the whole file.
                return False
            # What is quiet in a file that is not is left as it is.
            samples, of_level = levels.fit_level(block, "")
            samples, of_mix = levels.mix(samples)
            is_silent = levels.silence(samples)
            # Which of them are all alike is known at the end; of others, one is enough.
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
