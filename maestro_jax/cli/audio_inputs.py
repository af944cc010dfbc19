"""The recordings that a command line names: files, directories and standard input."""

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
from maestro_jax.progress import Progress

log = logging.getLogger(__name__)

STDIN = "-"
_STDIN_NAME = "standard input"
_WORTH_A_LINE = 60.0  # seconds


@dataclasses.dataclass
class AudioInput:
    """One recording, or why there is none.

    Attributes:
        name: As the command line has it, or below a directory that it names.
        error: What is wrong with it, as far as it is known before it is read.
        findings: What its user should know of it, as far as it has been read: `kind` and `detail`.
    """

    name: str
    error: UserError | None = None
    findings: list[dict[str, str]] = dataclasses.field(default_factory=list)

    def chunks(self) -> Iterator[np.ndarray]:
        """Reads it from its beginning.

        Yields:
            Float samples at 16 kHz, `[samples]`.

        Raises:
            UserError: It cannot be read.
        """
        if self.error is not None:
            raise self.error
        if self.name != STDIN:
            yield from self._read(Path(self.name))
            return
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "audio"
            with path.open("wb") as file:
                shutil.copyfileobj(sys.stdin.buffer, file)
            try:
                yield from self._read(path)
            except UserError as error:
                raise UserError(str(error).replace(str(path), _STDIN_NAME)) from error

    def _read(self, path: Path) -> Iterator[np.ndarray]:
        from maestro_jax.audio.chunks import audio_chunks

        for samples, findings in audio_chunks(path):
            for finding in findings:
                log.warning("%s: %s: %s", self.shown, finding.kind, finding.detail)
            self.findings += [one._asdict() for one in findings]
            yield samples

    @property
    def shown(self) -> str:
        """What messages call it."""
        return _STDIN_NAME if self.name == STDIN else self.name


def audio_inputs(names: Sequence[str]) -> list[AudioInput]:
    """Looks at what is named, without reading it.

    Args:
        names: Files, directories (all audio files below them, in the order of their names) and
            `-` for standard input.

    Returns:
        The recordings in the order of the names, those that are missing included. One that is
        named twice is there once.
    """
    found: dict[object, AudioInput] = {}
    repeated = 0
    for name in names:
        for one in _expanded(name):
            key = STDIN if one.name == STDIN else _identity(Path(one.name).expanduser())
            repeated += key in found
            found.setdefault(key, one)
    if repeated:
        log.warning("%d recordings are named more than once, and read once", repeated)
    return list(found.values())


def audio_input(name: str) -> AudioInput:
    """One recording.

    Args:
        name: A file, or `-` for standard input.

    Returns:
        The recording, with an error if it is no file.
    """
    path = Path(name).expanduser()
    if name != STDIN and path.is_dir():
        return AudioInput(name, UserError(f"{name} is a directory; name a recording in it."))
    return next(_expanded(name))


class ReadingProgress:
    """How much of some recordings has been read, and how long the rest will take.

    Nothing is written if they have less than a minute, as far as their headers say.

    Args:
        names: Files, or `-`.
    """

    def __init__(self, names: Sequence[str]) -> None:
        from maestro_jax.audio.chunks import stated_seconds

        seconds = sum(stated_seconds(name) for name in names if name != STDIN)
        shown = seconds >= _WORTH_A_LINE
        self._progress = (
            Progress(round(seconds), "transcribing", unit="s of audio") if shown else None
        )
        self._samples = 0

    def update(self, samples: int) -> None:
        """Counts so many samples as read."""
        self._samples += samples
        if self._progress is not None:
            done = self._samples // SAMPLE_RATE
            # A header may state less than there is.
            self._progress.total = max(self._progress.total, done)
            self._progress.update_to(done)

    def wipe(self) -> None:
        """Makes room on the terminal for a line of the results."""
        if self._progress is not None:
            self._progress.clear()

    def __enter__(self) -> ReadingProgress:
        """Returns the progress itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Writes the last line."""
        if self._progress is not None:
            if kind is None:
                # A header, or a size, may have promised more.
                self._progress.total = self._progress.n
            self._progress.close()


def _expanded(name: str) -> Iterator[AudioInput]:
    from maestro_jax.audio.reading import EXTENSIONS

    if name == STDIN:
        terminal = sys.stdin is None or sys.stdin.isatty()
        said = "- reads a recording from standard input: send one there, as in `cat a.wav | ...`."
        yield AudioInput(STDIN, UserError(said) if terminal else None)
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
        said = f"the directory {error.filename} cannot be read: {error.strerror}."
        yield AudioInput(str(error.filename), UserError(said))
    if others and audio:
        log.info("%s: %d recordings; %d other files are left out", name, audio, others)
    if not audio and not unreadable:
        said = f"there is no recording in the directory {name}: no file *{', *'.join(EXTENSIONS)}."
        yield AudioInput(name, UserError(said))


def _missing(path: Path) -> UserError | None:
    """What can be wrong with a file before it is opened; None if nothing is."""
    if not path.exists():
        return UserError(f"{path} does not exist; name an audio file, a directory of them, or -.")
    if not os.access(path, os.R_OK):
        return UserError(f"{path} cannot be opened: you may not read it; change its permissions.")
    return None


def _identity(path: Path) -> object:
    try:
        return path.resolve()
    except OSError:
        return path
