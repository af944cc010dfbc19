"""Makes speech to read: the same utterances as ogg files, as mp3 files and as prepared records.

An utterance joins sentences of MiniVox up to a length that is drawn from a lognormal distribution
with a median of 6 s, from 1.5 to 15 s, similar to Common Voice and VoxPopuli together.
"""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np

SAMPLE_RATE = 16_000
LONGEST_SECONDS = 15.0
MEDIAN_SECONDS = 6.0
# The formats of VoxPopuli and of Common Voice.
CONTAINERS = {
    "ogg": (16_000, {"format": "OGG", "subtype": "VORBIS"}),
    "mp3": (48_000, {"format": "MP3"}),
}
TASK = "benchmark_speech"


def write(directory: pathlib.Path, minutes: float) -> dict[str, Any]:
    """Writes all files, unless they exist.

    Args:
        directory: Gets `ogg/`, `mp3/` and `data/`.
        minutes: Of speech.

    Returns:
        `utterances` and `seconds`, how many there are.

    Raises:
        ImportError: espeak-ng is missing.
    """
    summary = directory / "summary.json"
    if not summary.exists():
        utterances = _speak(minutes)
        for container, (rate, settings) in CONTAINERS.items():
            _write_container(directory / container, utterances, rate, settings)
        _prepare(directory)
        seconds = sum(map(len, utterances)) / SAMPLE_RATE
        summary.write_text(json.dumps({"utterances": len(utterances), "seconds": seconds}))
    return json.loads(summary.read_text())


def paths(directory: pathlib.Path, container: str) -> list[str]:
    """Returns the files of a container, in the order in which they were written."""
    return [str(path) for path in sorted((directory / container).glob(f"*.{container}"))]


def register() -> None:
    """Registers a seqio task that reads the prepared records."""
    from maestro_jax.data.indexed_source import IndexedTfdsSource
    from maestro_jax.data.stream_tasks import add_stream_task

    source = IndexedTfdsSource("benchmark/en", {"train": "train"}, "the benchmark")
    add_stream_task(TASK, stream="speech", source=source, languages=("en",))


def _speak(minutes: float) -> list[np.ndarray]:
    from maestro_jax.errors import UserError
    from maestro_jax.minivox.config import SMALL
    from maestro_jax.minivox.corpus import make_example

    rng = np.random.default_rng(0)
    utterances: list[np.ndarray] = []
    sentence, left = 0, 60.0 * minutes
    while left > 0:
        seconds = float(np.clip(rng.lognormal(np.log(MEDIAN_SECONDS), 0.5), 1.5, LONGEST_SECONDS))
        pieces: list[np.ndarray] = []
        while sum(map(len, pieces)) < seconds * SAMPLE_RATE:
            try:
                pieces.append(make_example(SMALL, "paired_en_train", sentence).audio)
            except UserError as error:
                raise ImportError(str(error)) from error
            sentence += 1
        utterances.append(np.concatenate(pieces)[: round(seconds * SAMPLE_RATE)])
        left -= seconds
    return utterances


def _write_container(
    directory: pathlib.Path, utterances: list[np.ndarray], rate: int, settings: dict[str, Any]
) -> None:
    import soundfile

    from maestro_jax.audio.reading import resample

    directory.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, audio in enumerate(utterances):
        name = f"{number:05d}.{directory.name}"
        wave = resample(audio / np.float32(32768), SAMPLE_RATE, rate)
        soundfile.write(directory / name, wave, rate, **settings)
        lines.append(json.dumps({"audio": name, "language": "en"}) + "\n")
    (directory / "train.jsonl").write_text("".join(lines))


def _prepare(directory: pathlib.Path) -> None:
    from maestro_jax.data.corpora.manifest import Manifest
    from maestro_jax.data.corpora.prepare import prepare
    from maestro_jax.data.processes import Processes

    corpus = Manifest("benchmark", "speech of MiniVox")
    with Processes(1) as processes:
        prepare(corpus, directory / "ogg", "en", directory / "data", processes=processes)
