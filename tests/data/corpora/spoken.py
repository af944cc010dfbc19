"""Small corpora for tests: real speech in real containers, prepared, and read as a run does."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import scipy.signal
import soundfile

from maestro_jax.audio.reading import resample
from maestro_jax.batches import SAMPLE_RATE, StreamConfig
from maestro_jax.data.corpora.corpus import Corpus
from maestro_jax.data.corpora.prepare import PreparedConfig, prepare
from maestro_jax.data.processes import Processes
from maestro_jax.files import write_atomically
from maestro_jax.text.languages import LANGUAGES
from maestro_jax.text.vocabularies import BYTE_MODEL, ByteVocabulary


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


class InProcess(Processes):
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
    with Processes(workers) if workers else InProcess(1) as processes:
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


def issues_of(result: PreparedConfig) -> list[tuple[str, str, str]]:
    """Kind, split and item of each issue."""
    lines = (result.directory / "problems.tsv").read_text(encoding="utf-8").splitlines()[1:]
    return [tuple(line.split("\t")[:3]) for line in lines]  # type: ignore[misc]


def read_examples(root: Path, task: str, stream: str, count: int) -> list[dict[str, Any]]:
    """The training examples that a run gets in its first batch, sorted by text and audio length.

    Args:
        root: The data root; it gets a vocabulary of bytes.
        task: A task or mixture.
        stream: Its stream.
        count: The size of the batch; an epoch, if it is as many as there are.

    Returns:
        Audio as int16 `[samples]`, text and translation as strings, languages as codes.
    """
    from maestro_jax.data.loader import StreamLoader

    write_atomically(root / "vocabularies" / "multilingual.model", BYTE_MODEL)
    config = StreamConfig(
        mixture=task,
        batch_size=count,
        audio_samples=0 if stream in ("text", "mt") else 40 * SAMPLE_RATE,
        text_tokens=0 if stream in ("speech", "st") else 200,
        translation_tokens=200 if stream in ("mt", "st") else 0,
    )
    with StreamLoader({stream: config}, seed=1, data_dir=root) as loader:
        batch = next(loader)[stream]
    read = []
    for row in range(count):
        example: dict[str, Any] = {}
        for name in ("audio", "text", "translation"):
            if name in batch:
                values = batch[name][row, : batch[f"{name}_length"][row]]
                example[name] = values if name == "audio" else ByteVocabulary().decode(values)
        for name in ("language", "target_language"):
            if name in batch:
                example[name] = LANGUAGES[batch[name][row]]
        read.append(example)
    return sorted(read, key=lambda e: (e.get("text", ""), np.size(e.get("audio", ()))))


def sizes(root: Path, task: str) -> dict[str, int]:
    """The examples of each split of a task."""
    from maestro_jax.data.data_dir import data_scope
    from maestro_jax.data.task_registry import get_task_or_mixture

    with data_scope(root):
        provider = get_task_or_mixture(task)
        return {split: provider.num_input_examples(split) for split in provider.splits}


def likeness(recorded: np.ndarray, sentence: str, language: str) -> float:
    """The highest correlation of a recording with what is said, at any delay; 1 if it is the same.

    Args:
        recorded: int16 `[samples]` at 16 kHz.
        sentence: What should have been said in it.
        language: In which language.
    """
    spoken = say(sentence, language)
    peak = scipy.signal.correlate(recorded / 32768.0, spoken, method="fft").max()
    return float(peak / np.linalg.norm(recorded / 32768.0) / np.linalg.norm(spoken))
