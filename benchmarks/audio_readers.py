"""Contenders that read the same speech: this project, lhotse and Hugging Face datasets.

Each reads in one process on its own cores. The job of a contender names its input. A run reads
about `seconds` of speech; the report has the exact duration and the padding of the batches. Batches
hold at most `BATCH_SECONDS` of speech, including padding.
"""

from __future__ import annotations

import itertools
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import audio_files
import numpy as np

BATCH_SECONDS = 240
SHARDS = ("prepared", "prepared, one shape")
PADDING_PASSES, PADDING_PASSES_SHARDS = 4, 100
"""Epochs that are read before the clock starts, to average the padding. The bucket of each batch is
drawn at random from the shards, which needs more batches; the peers read an epoch each."""
BUCKETS = 5
"""Number of lengths of our batches and of buckets of lhotse; each contender finds its own."""

Batches = Iterator[tuple[int, int]]
"""Samples of a batch with padding, and without padding."""


def prepare(job: dict[str, Any]) -> tuple[dict[str, Any], Callable[[], object]]:
    """Prepares a contender: `who` reads `what`."""
    make = {
        ("maestro_jax", "prepared"): lambda: _loader(job, buckets=True),
        ("maestro_jax", "prepared, one shape"): lambda: _loader(job, buckets=False),
    }.get((job["who"], job["what"]))
    if make is None:
        make = {"maestro_jax": _originals, "lhotse": _lhotse, "datasets": _datasets}[job["who"]]
        batches = make(job)
    else:
        batches = make()
    passes = PADDING_PASSES_SHARDS if job["what"] in SHARDS else PADDING_PASSES
    padded = real = 0
    for with_padding, without in _until(batches, passes * job["corpus_seconds"]):
        padded, real = padded + with_padding, real + without

    def run() -> object:
        return sum(without for _, without in _until(batches, job["seconds"]))

    seconds = job["seconds"]
    return {"padding": padded / real, "seconds": seconds}, run


def _until(batches: Batches, seconds: float) -> Iterator[tuple[int, int]]:
    """Reads batches up to a duration of speech."""
    left = seconds * audio_files.SAMPLE_RATE
    while left > 0:
        batch = next(batches)
        left -= batch[1]
        yield batch


def _batch_size(seconds: float) -> int:
    return int(BATCH_SECONDS // seconds)


def _loader(job: dict[str, Any], *, buckets: bool) -> Batches:
    """Reads prepared shards with our loader, without keeping them in memory."""
    from maestro_jax.batches import Buckets, StreamConfig
    from maestro_jax.data.bucketing import best_limits, mixture_lengths
    from maestro_jax.data.data_dir import data_scope
    from maestro_jax.data.loader import StreamLoader

    audio_files.register()
    rate = audio_files.SAMPLE_RATE
    data_dir = pathlib.Path(job["directory"]) / "data"
    with data_scope(data_dir):
        found = mixture_lengths(audio_files.TASK)
    longest = round(audio_files.LONGEST_SECONDS * rate)
    shorter = best_limits(
        found.lengths[:, 0], found.weights, BUCKETS, longest=longest, multiple=1280
    )[:-1]
    stream = StreamConfig(
        mixture=audio_files.TASK,
        batch_size=_batch_size(audio_files.LONGEST_SECONDS),
        audio_samples=longest,
        buckets=Buckets(
            batch_sizes=tuple(_batch_size(samples / rate) for samples in shorter),
            audio_samples=tuple(shorter),
        )
        if buckets
        else None,
    )
    for batch in StreamLoader({"speech": stream}, seed=0, data_dir=data_dir, cache_bytes=0):
        features = batch["speech"]
        yield features["audio"].size, int(features["audio_length"].sum())


def _shuffled(paths: list[str]) -> Iterator[str]:
    for epoch in itertools.count():
        for index in np.random.default_rng(epoch).permutation(len(paths)):
            yield paths[index]


def _padded(waves: list[np.ndarray]) -> tuple[int, int]:
    """Pads a batch to its longest example."""
    longest = max(map(len, waves))
    batch = np.zeros((len(waves), longest), waves[0].dtype)
    for row, wave in zip(batch, waves, strict=True):
        row[: len(wave)] = wave
    return batch.size, sum(map(len, waves))


def _originals(job: dict[str, Any]) -> Batches:
    """Reads files as `maestro prepare` does, batched in random order."""
    from maestro_jax.audio.reading import read_audio, to_int16

    files = _shuffled(audio_files.paths(pathlib.Path(job["directory"]), job["what"]))
    size = _batch_size(audio_files.LONGEST_SECONDS)
    while True:
        yield _padded([to_int16(read_audio(path)) for path in itertools.islice(files, size)])


def _lhotse(job: dict[str, Any]) -> Batches:
    """Reads with the dynamic bucketing of lhotse, with as many buckets as ours."""
    import torch
    import torchaudio_beside_cpu_torch

    torchaudio_beside_cpu_torch.load_torchaudio()
    from lhotse import CutSet, Recording
    from lhotse.dataset import DynamicBucketingSampler
    from lhotse.dataset.collation import collate_audio

    torch.set_num_threads(job["cores"])
    paths = audio_files.paths(pathlib.Path(job["directory"]), job["what"])
    cuts = CutSet.from_cuts([Recording.from_file(path).to_cut() for path in paths])
    cuts = cuts.resample(audio_files.SAMPLE_RATE).to_eager()
    for epoch in itertools.count():
        sampler = DynamicBucketingSampler(
            cuts,
            max_duration=BATCH_SECONDS,
            num_buckets=BUCKETS,
            shuffle=True,
            seed=epoch,
        )
        for batch in sampler:
            audio, lengths = collate_audio(batch)
            yield audio.numel(), int(lengths.sum())


def _datasets(job: dict[str, Any]) -> Batches:
    """Reads with Hugging Face datasets in random order, padded to the longest example of a batch.

    Its own decoder is torchcodec, which needs the libraries of FFmpeg. Without them it gives the
    files, and soundfile and torchaudio decode and resample them.
    """
    import torch
    from datasets import Audio, Dataset

    torch.set_num_threads(job["cores"])
    paths = audio_files.paths(pathlib.Path(job["directory"]), job["what"])
    data = Dataset.from_dict({"audio": paths})
    decoded = data.cast_column("audio", Audio(sampling_rate=audio_files.SAMPLE_RATE))
    wave: Callable[[Any], np.ndarray]
    try:
        decoded[0]["audio"]["array"]
    except (ImportError, RuntimeError, OSError):
        decoded = data.cast_column("audio", Audio(decode=False))
        wave = _decoder()
    else:
        wave = _array
    size = _batch_size(audio_files.LONGEST_SECONDS)
    for epoch in itertools.count():
        for batch in decoded.shuffle(seed=epoch).iter(batch_size=size):
            yield _padded([wave(audio) for audio in batch["audio"]])


def _array(audio: Any) -> np.ndarray:
    return np.asarray(audio["array"])


def _decoder() -> Callable[[Any], np.ndarray]:
    """Returns a decoder of files that does not need torchcodec."""
    import soundfile
    import torch
    import torchaudio_beside_cpu_torch

    torchaudio = torchaudio_beside_cpu_torch.load_torchaudio()
    transforms: dict[int, Any] = {}

    def decode(audio: Any) -> np.ndarray:
        samples, rate = soundfile.read(audio["path"], dtype="float32")
        if rate == audio_files.SAMPLE_RATE:
            return samples
        if rate not in transforms:
            transforms[rate] = torchaudio.transforms.Resample(rate, audio_files.SAMPLE_RATE)
        return transforms[rate](torch.from_numpy(samples)).numpy()

    return decode
