"""Recordings named on a command line: files, directories and standard input."""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from maestro_jax.batches import SAMPLE_RATE
from maestro_jax.errors import UserError
from maestro_jax.files import as_path, files_below, is_remote, naming_failures
from maestro_jax.progress import Progress

log = logging.getLogger(__name__)

STDIN = "-"
_STDIN_NAME = "standard input"
_WORTH_A_LINE = 60.0  # seconds


@dataclasses.dataclass
class AudioInput:
    """A recording, or the reason why there is none.

    Attributes:
        name: Path as on the command line, or below a directory that it names; `-` for standard
            input.
        error: Why it cannot be read, as far as this is known before reading.
        findings: Problems found while reading, each with `kind` and `detail`.
    """

    name: str
    error: UserError | None = None
    findings: list[dict[str, str]] = dataclasses.field(default_factory=list)

    def chunks(self) -> Iterator[np.ndarray]:
        """Reads the recording from its beginning.

        Yields:
            Float samples at 16 kHz, `[samples]`.

        Raises:
            UserError: It cannot be read.
        """
        if self.error is not None:
            raise self.error
        if self.name != STDIN and not is_remote(self.name):
            yield from self._read(Path(self.name))
            return
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "audio"
            with path.open("wb") as file:
                if self.name == STDIN:
                    shutil.copyfileobj(sys.stdin.buffer, file)
                else:
                    with naming_failures(self.name, "recording"):
                        with as_path(self.name).open("rb") as source:
                            shutil.copyfileobj(source, file, 1 << 24)
            try:
                yield from self._read(path)
            except UserError as error:
                raise UserError(str(error).replace(str(path), self.shown)) from error

    def _read(self, path: Path) -> Iterator[np.ndarray]:
        from maestro_jax.audio.chunks import audio_chunks

        for samples, findings in audio_chunks(path):
            for finding in findings:
                log.warning("%s: %s: %s", self.shown, finding.kind, finding.detail)
            self.findings += [one._asdict() for one in findings]
            yield samples

    @property
    def shown(self) -> str:
        """The name in messages."""
        return _STDIN_NAME if self.name == STDIN else self.name


def audio_inputs(names: Sequence[str]) -> list[AudioInput]:
    """Lists recordings without reading them.

    Args:
        names: Files, directories (all audio files below them, in the order of their names) and
            `-` for standard input.

    Returns:
        The recordings in the order of the names, missing ones included, each once.
    """
    found: dict[object, AudioInput] = {}
    repeated = 0
    for name in names:
        for one in _expanded(name):
            key = one.name if one.name == STDIN or is_remote(one.name) else _identity(one.name)
            repeated += key in found
            found.setdefault(key, one)
    if repeated:
        log.warning("%d recordings are named more than once and read once", repeated)
    return list(found.values())


def audio_input(name: str) -> AudioInput:
    """Returns one recording.

    Args:
        name: A file, or `-` for standard input.

    Returns:
        The recording, with an error if there is no such file.
    """
    if name != STDIN and as_path(name).is_dir():
        return AudioInput(name, UserError(f"{name} is a directory; name a recording in it."))
    return next(_expanded(name))


class ReadingProgress:
    """Shows how much of some recordings has been read, and the time left.

    Nothing is shown for less than a minute of audio, according to the headers.

    Args:
        names: Files, or `-`.
    """

    def __init__(self, names: Sequence[str]) -> None:
        from maestro_jax.audio.chunks import stated_seconds

        seconds = sum(
            # What is in a bucket is not opened twice.
            stated_seconds(name)
            for name in names
            if name != STDIN and not is_remote(name)
        )
        shown = seconds >= _WORTH_A_LINE
        self._progress = (
            Progress(round(seconds), "transcribing", unit="s of audio") if shown else None
        )
        self._samples = 0

    def update(self, samples: int) -> None:
        """Counts `samples` more samples as read."""
        self._samples += samples
        if self._progress is not None:
            done = self._samples // SAMPLE_RATE
            # A header may state a shorter length.
            self._progress.total = max(self._progress.total, done)
            self._progress.update_to(done)

    def wipe(self) -> None:
        """Clears the bar of a terminal, for a line of the results."""
        if self._progress is not None:
            self._progress.clear()

    def __enter__(self) -> ReadingProgress:
        """Returns the progress itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Writes the last line."""
        if self._progress is not None:
            if kind is None:
                # A header, or a size, may have stated a greater length.
                self._progress.total = self._progress.n
            self._progress.close()


def _expanded(name: str) -> Iterator[AudioInput]:
    from maestro_jax.audio.reading import EXTENSIONS

    if name == STDIN:
        terminal = sys.stdin is None or sys.stdin.isatty()
        message = "- reads a recording from standard input: pipe one in, as in `cat a.wav | ...`."
        yield AudioInput(STDIN, UserError(message) if terminal else None)
        return
    if is_remote(name):
        yield from _in_bucket(name)
        return
    path = Path(name).expanduser()
    if not path.is_dir():
        yield AudioInput(name, _missing(path))
        return
    audio, others = 0, 0
    unreadable: list[OSError] = []
    walked: set[Path] = set()
    for folder, folders, files in os.walk(path, onerror=unreadable.append, followlinks=True):
        # A link may lead back to where the walk came from.
        if (place := Path(folder).resolve()) in walked:
            folders.clear()
            continue
        walked.add(place)
        folders[:] = sorted(one for one in folders if not one.startswith("."))
        # Some systems keep a hidden file beside each recording, with the same extension.
        for file in sorted(one for one in files if not one.startswith(".")):
            if Path(file).suffix.lower() in EXTENSIONS:
                audio += 1
                below = os.path.join(name, os.path.relpath(os.path.join(folder, file), path))
                yield AudioInput(below, _missing(Path(folder) / file))
            else:
                others += 1
    for error in unreadable:
        message = f"the directory {error.filename} cannot be read: {error.strerror}."
        yield AudioInput(str(error.filename), UserError(message))
    if others and audio:
        log.info("%s: %d recordings; %d other files are ignored", name, audio, others)
    if not audio and not unreadable:
        extensions = ", *".join(EXTENSIONS)
        message = f"there is no recording in the directory {name}: no file *{extensions}."
        yield AudioInput(name, UserError(message))


def _in_bucket(name: str) -> Iterator[AudioInput]:
    """Yields a recording in a bucket, or all that are below a directory there."""
    from maestro_jax.audio.reading import EXTENSIONS

    try:
        path = as_path(name)
        with naming_failures(name, "recording"):
            if not path.is_dir():
                error = UserError(f"there is no recording {name}; check the path")
                yield AudioInput(name, None if path.exists() else error)
                return
            files = list(files_below(path))
    except UserError as error:
        yield AudioInput(name, error)
        return
    audio = [file for file in files if file.suffix.lower() in EXTENSIONS]
    if len(audio) < len(files) and audio:
        ignored = len(files) - len(audio)
        log.info("%s: %d recordings; %d other files are ignored", name, len(audio), ignored)
    for file in audio:
        yield AudioInput(os.fspath(file))
    if not audio:
        extensions = ", *".join(EXTENSIONS)
        message = f"there is no recording in the directory {name}: no file *{extensions}."
        yield AudioInput(name, UserError(message))


def _missing(path: Path) -> UserError | None:
    """Returns the error of a file that cannot be opened; None if it can."""
    if not path.exists():
        return UserError(f"{path} does not exist; name an audio file, a directory of them, or -.")
    if not os.access(path, os.R_OK):
        return UserError(f"{path} cannot be opened: permission denied; change its permissions.")
    return None


def _identity(name: str) -> object:
    path = Path(name).expanduser()
    try:
        return path.resolve()
    except OSError:
        return path
