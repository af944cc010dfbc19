"""Small corpora for tests: real speech in real containers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from maestro_jax.audio.reading import resample
from maestro_jax.batches import SAMPLE_RATE
from maestro_jax.data.corpora.corpus import Corpus
from maestro_jax.data.corpora.prepare import PreparedConfig, prepare
from maestro_jax.data.processes import Processes


@functools.cache
def say(text: str, language: str = "en", rate: int = SAMPLE_RATE) -> np.ndarray:
    """A text as espeak-ng speaks it: float32 `[samples]`."""
    from maestro_jax.minivox.speech import record as record_speech

    return resample(record_speech(text, language).audio / 32768.0, SAMPLE_RATE, rate)


def record(path: Path, samples: np.ndarray, rate: int = SAMPLE_RATE) -> Path:
    """Writes audio in the container that the name asks for; mp3 with a variable bit rate."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = {
        ".ogg": {"format": "OGG", "subtype": "VORBIS"},
        ".opus": {"format": "OGG", "subtype": "OPUS"},
        ".mp3": {"format": "MP3", "bitrate_mode": "VARIABLE", "compression_level": 0.3},
        ".flac": {"format": "FLAC"},
        ".wav": {"format": "WAV"},
        ".sph": {"format": "NIST"},
    }[path.suffix]
    soundfile.write(path, samples, rate, **kind)
    return path


def speak_to(path: Path, text: str, language: str = "en", rate: int = SAMPLE_RATE) -> Path:
    """Says a text into a file."""
    return record(path, say(text, language, rate), rate)


class Here(Processes):
    """In the place of processes, each of which would import TensorFlow: calls in this one."""

    def results(
        self, function: Callable[..., Any], requests: Iterable[tuple[Any, ...]], *, ahead: int = 4
    ) -> Iterator[Any]:
        del ahead
        for arguments in requests:
            yield function(*arguments)


def prepared(
    corpus: Corpus, source: Path, config: str, root: Path, *, strict: bool = False, workers: int = 0
) -> PreparedConfig:
    """Prepares a config with small parts, by default in this process."""
    with Processes(workers) if workers else Here(1) as processes:
        return prepare(
            corpus, source, config, root, processes=processes, strict=strict, utterances_per_shard=3
        )


def records(result: PreparedConfig, split: str) -> list[dict[str, object]]:
    """What was written: texts as str, audio as arrays."""
    import tensorflow_datasets as tfds

    source = tfds.builder_from_directory(result.directory).as_data_source(split)
    return [
        {
            name: value.decode() if isinstance(value, bytes) else value
            for name, value in source[number].items()
        }
        for number in range(len(source))
    ]


def problems(result: PreparedConfig) -> list[tuple[str, str, str]]:
    """What was wrong: kind, split and item of each problem."""
    lines = (result.directory / "issues.tsv").read_text(encoding="utf-8").splitlines()[1:]
    return [tuple(line.split("\t")[:3]) for line in lines]  # type: ignore[misc]
