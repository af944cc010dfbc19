"""Reads audio files as 16 kHz mono waveforms, and reports problems of the files.

Headers are compared with what is there (`maestro_jax.audio.containers`): all that a file holds is
decoded, and a difference is told.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import soxr

from maestro_jax.audio import levels
from maestro_jax.audio.containers import media
from maestro_jax.audio.containers.decoding import Decoded, decode
from maestro_jax.audio.containers.examine import examine, is_text
from maestro_jax.audio.containers.layout import Finding, Layout
from maestro_jax.batches import SAMPLE_RATE
from maestro_jax.errors import UserError

log = logging.getLogger(__name__)

_FORMATS = ("wav", "flac", "ogg", "opus", "mp3")
_KNOWN_FORMATS = "wav, flac, ogg, opus or mp3"
EXTENSIONS = (
    *(".wav", ".wave", ".w64", ".rf64", ".aiff", ".aif", ".aifc", ".au", ".snd", ".caf", ".sph"),
    *(".flac", ".ogg", ".oga", ".opus", ".mp3"),
    *(".m4a", ".mp4", ".aac", ".webm", ".mka", ".mkv", ".mov", ".wma", ".amr", ".3gp", ".avi"),
)
"""Suffixes of audio files in directories; those of the last line take the extra `media`."""
_OF_THE_FILE = ("cut short", "header mismatch")
"""Findings on a whole file, which do not concern parts of it."""


class EmptyAudioError(UserError):
    """A file that can be decoded but holds no samples."""


class Recording(NamedTuple):
    """The samples of a file, and what is notable about them.

    Attributes:
        samples: float32 `[samples]` at 16 kHz, within about -1 to 1.
        findings: Notes for the user: missing or damaged parts, a header that states another length,
            an implausible level, channels that cancel each other out, silence.
    """

    samples: np.ndarray
    findings: tuple[Finding, ...]


def read_audio(path: str | Path, spans: Sequence[tuple[float, float]] | None = None) -> np.ndarray:
    """Reads a file as `read_recording` does, and logs each finding as a warning.

    Args:
        path: The file.
        spans: See `read_recording`.

    Returns:
        float32 `[samples]` at 16 kHz.

    Raises:
        UserError: See `read_recording`.
    """
    samples, findings = read_recording(path, spans)
    for finding in findings:
        log.warning("%s: %s: %s", path, finding.kind, finding.detail)
    return samples


def read_recording(
    path: str | Path, spans: Sequence[tuple[float, float]] | None = None
) -> Recording:
    """Reads an audio file of any rate, mono or with several channels, to its end.

    Reads wav (also RF64, extensible), W64, AIFF, AU, CAF, NIST sphere, flac, ogg (Vorbis, Opus,
    FLAC; also several streams in one file) and mp3; with the extra `media` whatever FFmpeg does,
    such as mp4, m4a and webm. The content decides, not the name. A pipe is read to its end first.

    Channels are averaged, unless they cancel each other out: then the loudest is read. Other rates
    than 16 kHz are converted by `resample`. Samples up to twice full scale are scaled down to it
    where clipping would be heard; beyond that, scaling is a finding.

    Args:
        path: The file.
        spans: Begin and end of the pieces to read, in seconds, one after the other; None for the
            whole file. What lies beyond the end of the file is left out.

    Returns:
        The samples, ``ceil(frames * 16000 / rate)`` of a file of one stream, and the findings.

    Raises:
        UserError: The file is missing, a directory, unreadable, empty, or holds no finite audio.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        raise UserError(f"{path} is a directory; name an audio file ({_KNOWN_FORMATS}).")
    if not path.exists():
        raise UserError(f"{path} does not exist; name an audio file ({_KNOWN_FORMATS}).")
    try:
        with _seekable(path) as file:
            if file.stat().st_size == 0:
                raise UserError(f"{path} is empty; name an audio file ({_KNOWN_FORMATS}).")
            try:
                recording = _read(file, spans)
            except ValueError as error:
                raise UserError(_unreadable(path, file, str(error))) from error
    except OSError as error:
        raise UserError(f"{path} cannot be opened: {error.strerror or error}.") from error
    if not len(recording.samples):
        nothing = "no samples" if spans is None else "no samples where they were looked for"
        raise EmptyAudioError(f"{path} holds {nothing}: its audio has zero length.")
    # The resampling filter keeps what is not finite, and leaves fewer samples to check.
    if not np.isfinite(recording.samples).all():
        raise not_finite(path)
    return recording


def not_finite(path: Path) -> UserError:
    """Returns the error for a file with samples that are not finite."""
    return UserError(f"{path} holds samples that are not finite numbers; write it as 16-bit audio.")


@contextlib.contextmanager
def _seekable(path: Path) -> Iterator[Path]:
    """Yields the file itself, or a temporary copy of what comes out of a pipe."""
    if path.is_file():
        yield path
        return
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory) / "audio"
        with path.open("rb") as pipe, copy.open("wb") as file:
            shutil.copyfileobj(pipe, file)
        yield copy


def _read(path: Path, spans: Sequence[tuple[float, float]] | None) -> Recording:
    if spans is None:
        return _read_whole(path)
    status = path.stat()
    key = (status.st_size, status.st_mtime_ns)
    if _is_seekable(path, *key):
        with contextlib.suppress(soundfile.LibsndfileError, RuntimeError):
            decoded = _read_spans(path, spans)
            if not levels.may_be_shifted(decoded.samples, decoded.subtype):
                return _finished([decoded])
    samples, findings = _last_read(path, *key)
    pieces = [
        samples[round(begin * SAMPLE_RATE) : round(min(end * SAMPLE_RATE, len(samples)))]
        for begin, end in spans
    ]
    samples = np.concatenate(pieces) if pieces else samples[:0]
    findings = tuple(one for one in findings if one.kind not in (*_OF_THE_FILE, "silent audio"))
    return Recording(samples, findings + (levels.silence(samples) if len(samples) else ()))


@functools.lru_cache(maxsize=1024)
def _is_seekable(path: Path, size: int, changed: int) -> bool:
    """Tells whether libsndfile can seek in a file, and parts of it need no scaling by the whole.

    `size` and `changed` tell the file from others of its name.
    """
    del size, changed
    layout = _examined(path)
    # Without a known format each span would try all decoders again.
    if not layout.is_seekable or not layout.format:
        return False
    try:
        return not levels.is_of_whole_file(soundfile.info(path).subtype)
    except (soundfile.LibsndfileError, RuntimeError, TypeError):
        return False


@functools.lru_cache(maxsize=1)
def _last_read(path: Path, size: int, changed: int) -> Recording:
    """Reads a whole file and caches the last one: utterances of one file are read in a row."""
    del size, changed
    return _read_whole(path)


def _examined(path: Path) -> Layout:
    with path.open("rb") as file:
        return examine(file)


def _read_whole(path: Path) -> Recording:
    layout = _examined(path)
    decoded, findings = [], layout.findings
    reason: ValueError | None = None
    for piece in layout.pieces:
        try:
            decoded.append(decode(path, layout, piece))
        except ValueError as error:
            reason = error
    if reason is not None:
        if not decoded:
            raise reason
        detail = f"a part of it cannot be decoded ({str(reason).rstrip('.')})"
        findings = (*findings, Finding("damaged audio", detail))
    recording = _finished(decoded)
    return recording._replace(findings=(*findings, *recording.findings))


def _finished(pieces: list[Decoded]) -> Recording:
    """Joins pieces to one waveform at 16 kHz."""
    waves: list[np.ndarray] = []
    findings: list[Finding] = []
    is_silent: list[tuple[Finding, ...]] = []
    for piece in pieces:
        findings += piece.findings
        if not len(piece.samples):
            continue
        # Samples that are not finite are refused at the end.
        with np.errstate(all="ignore"):
            samples, of_level = levels.fit_level(piece.samples, piece.subtype)
            samples, of_mix = levels.mix(samples)
            is_silent.append(levels.silence(samples))
        findings += [*of_level, *of_mix]
        waves.append(resample(samples, piece.rate))
    if is_silent and all(is_silent):
        findings += is_silent[0]
    if not waves:
        return Recording(np.zeros(0, np.float32), tuple(findings))
    # Pieces of a file may have the same finding.
    once = tuple(dict.fromkeys(findings))
    return Recording(waves[0] if len(waves) == 1 else np.concatenate(waves), once)


def _read_spans(path: Path, spans: Sequence[tuple[float, float]]) -> Decoded:
    pieces, rate, subtype = [], SAMPLE_RATE, ""
    for begin, end in spans:
        # Opened per piece: in Ogg Vorbis, libsndfile's second seek is off by hundreds of samples.
        with soundfile.SoundFile(path) as opened:
            rate, subtype = opened.samplerate, opened.subtype
            # An infinite end is the end of the file.
            first, last = (round(min(at * rate, opened.frames)) for at in (begin, end))
            if last > first:
                opened.seek(first)
                pieces.append(opened.read(last - first, dtype="float32", always_2d=True))
    samples = np.concatenate(pieces) if pieces else np.zeros((0, 1), np.float32)
    return Decoded(samples, rate, subtype)


def _unreadable(path: Path, file: Path, reason: str) -> str:
    """Explains in one line why a file cannot be decoded, and what to do.

    Args:
        path: As the user named it.
        file: The file that can be read.
        reason: The message of a decoder.
    """
    with file.open("rb") as opened:
        beginning = opened.read(1024)
    if beginning.startswith(b"NIST_1A") and b"shorten" in beginning:
        return (
            f"{path} is a sphere file compressed by shorten, which is not read; put what "
            f"`sph2pipe -p -f sph {path.name} NEW` writes in its place."
        )
    name = media.format_of(beginning)
    own = (name, _examined(file).format, path.suffix.lstrip(".").lower())
    others = [one for one in _FORMATS if one not in own]
    if "ogg" in own:
        others = [one for one in others if one != "opus"]
    others_in_words = f"{', '.join(others[:-1])} or {others[-1]}"
    if name and not media.is_installed():
        return (
            f"{path} is {name}, which takes the extra `media`; pip install maestro_jax[media], or "
            f"convert it to {others_in_words}."
        )
    reason = reason.rstrip(".")
    if is_text(beginning[:512]):
        excerpt = " ".join(beginning[:40].decode("utf-8", "replace").split())
        return (
            f"{path} cannot be read as audio (it is text: {excerpt!r}); put the recording in its "
            "place."
        )
    if own[0] or own[1]:
        return (
            f"{path} cannot be read as audio ({reason}): a damaged {own[0] or own[1]} file, or one "
            f"of an unusual coding; get it again, or export it as {others_in_words}."
        )
    more = "" if media.is_installed() else "install the extra `media` (maestro_jax[media]), or "
    return f"{path} cannot be read as audio ({reason}); {more}convert it to {others_in_words}."


def resample(samples: np.ndarray, rate: int, target_rate: int = SAMPLE_RATE) -> np.ndarray:
    """Converts a waveform to another sampling rate, by the band-limited filter of libsoxr.

    Args:
        samples: float `[samples]` at ``rate``.
        rate: Samples per second of the input.
        target_rate: Samples per second of the output.

    Returns:
        float32 `[ceil(samples * target_rate / rate)]`.
    """
    samples = np.ascontiguousarray(samples, np.float32)
    if rate == target_rate:
        return samples
    converted = soxr.resample(samples, rate, target_rate, quality="HQ")
    length = -(-len(samples) * target_rate // rate)
    # libsoxr rounds to the nearest number of samples.
    return np.pad(converted, (0, max(length - len(converted), 0)))[:length]


def to_int16(samples: np.ndarray) -> np.ndarray:
    """Scales a float waveform `[samples]` within -1 to 1 to int16, as batches carry audio."""
    samples = np.asarray(samples)
    # Scaling by a power of two is exact in float32, which takes half the time of float64.
    scaled = (
        samples * samples.dtype.type(32768)
        if samples.dtype == np.float32
        else (samples.astype(np.float64) * 32768.0)
    )
    return np.clip(np.rint(scaled, out=scaled), -32768, 32767, out=scaled).astype(np.int16)
