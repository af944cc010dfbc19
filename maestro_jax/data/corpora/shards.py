"""Writes shards of a prepared split: each is read, converted and written by one process.

A shard is complete when its record file and its statistics exist. A preparation that was
interrupted continues with the shards that are not complete.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import tempfile
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from maestro_jax.audio.reading import EmptyAudioError, read_recording, to_int16
from maestro_jax.batches import SAMPLE_RATE
from maestro_jax.data.corpora.corpus import Embedded, Utterance
from maestro_jax.data.corpora.issues import KEPT_KINDS, Issue
from maestro_jax.data.corpora.parquet import read_embedded
from maestro_jax.data.lengths import as_array, record_lengths, save_lengths
from maestro_jax.errors import UserError

RECORDS = ".array_record"
LENGTHS = ".lengths.npy"
TEXTS = ".texts"
"""The same records without audio, for tasks of text: a thousandth of the bytes."""
STATS = ".json"
SUFFIXES = (RECORDS, LENGTHS, STATS)
"""Suffixes of the files of every shard; shards with audio and text also have `TEXTS`."""


@dataclasses.dataclass(frozen=True)
class ShardStats:
    """What was written to a shard.

    Attributes:
        fingerprint: Fingerprint of the utterances that the shard was made from.
        utterances: Number of utterances that were written.
        samples: Number of audio samples, at 16 kHz.
        num_bytes: Bytes of the records.
        issues: Issues with the audio of the utterances.
        text_bytes: Bytes of the records without audio; 0 if there are none.
    """

    fingerprint: str
    utterances: int
    samples: int
    num_bytes: int
    issues: tuple[Issue, ...] = ()
    text_bytes: int = 0


@functools.cache
def record_features() -> Any:
    """Returns the TFDS features of a record, which are the same for all corpora."""
    from maestro_jax.data.tensorflow_import import import_tensorflow

    import_tensorflow()
    import tensorflow_datasets as tfds

    return tfds.features.FeaturesDict(
        {
            # Not the Audio feature, which stores every sample in 64 bits.
            "audio": tfds.features.Tensor(
                shape=(None,),
                dtype=np.int16,
                encoding=tfds.features.Encoding.BYTES,
                doc="16 kHz, one channel; empty where there is only text.",
            ),
            "text": tfds.features.Text(doc="Normalised as VoxPopuli does."),
            "raw_text": tfds.features.Text(doc="As the corpus has it."),
            "translation": tfds.features.Text(doc="With case and punctuation."),
            "language": tfds.features.Text(doc="ISO 639-1 code."),
            "speaker": tfds.features.Text(doc="The corpus' name for the speaker."),
            "id": tfds.features.Text(doc="Unique within the split."),
        }
    )


def fingerprint(utterances: tuple[Utterance, ...]) -> str:
    """Returns a hash of the descriptions of some utterances."""
    digest = hashlib.blake2b(digest_size=16)
    for utterance in utterances:
        digest.update(repr(utterance).encode())
    return digest.hexdigest()


def read_stats(path: Path, utterances: tuple[Utterance, ...]) -> ShardStats | None:
    """Reads the statistics of a complete shard.

    Args:
        path: Path of the shard, without suffix.
        utterances: The utterances that it should be made from.

    Returns:
        The statistics; None if the shard is not complete or was made from other utterances.
    """
    suffixes = (*SUFFIXES, TEXTS) if _have_audio_and_text(utterances) else SUFFIXES
    if not all(path.with_name(path.name + suffix).is_file() for suffix in suffixes):
        return None
    try:
        values = json.loads(path.with_name(path.name + STATS).read_text(encoding="utf-8"))
        values["issues"] = tuple(Issue(*issue) for issue in values["issues"])
        stats = ShardStats(**values)
    except (ValueError, TypeError, KeyError):
        return None
    return stats if stats.fingerprint == fingerprint(utterances) else None


def _have_audio_and_text(utterances: tuple[Utterance, ...]) -> bool:
    return any(one.audio and (one.text or one.translation) for one in utterances)


def write_shard(path: Path, utterances: tuple[Utterance, ...]) -> ShardStats:
    """Reads the audio of some utterances and writes their records.

    Args:
        path: Path of the shard, without suffix; its directory exists.
        utterances: Utterances of the shard. Those with unusable audio are left out, and the
            statistics list their issues.

    Returns:
        The statistics, which are also written beside the records.
    """
    from array_record.python import array_record_module

    serialize = record_features().serialize_example
    record = path.with_name(path.name + RECORDS)
    partial = record.with_name(f".{record.name}.partial")
    issues: list[Issue] = []
    lengths: list[tuple[int, int, int]] = []
    samples = num_bytes = text_bytes = 0
    # Records are read one by one and at random, so each one is a group of its own.
    writer = array_record_module.ArrayRecordWriter(str(partial), "group_size:1")
    text_writer = None
    text_path = path.with_name(path.name + TEXTS)
    text_path.unlink(missing_ok=True)
    if _have_audio_and_text(utterances):
        text_writer = array_record_module.ArrayRecordWriter(str(text_path), "group_size:1")
    try:
        for utterance in utterances:
            audio = _read_audio(utterance, issues)
            if audio is None:
                continue
            example = {
                name: getattr(utterance, name)
                for name in ("id", "text", "raw_text", "translation", "language", "speaker")
            }
            # Models read and write composed characters; the raw text stays as published.
            for name in ("text", "translation"):
                example[name] = unicodedata.normalize("NFC", example[name])
            content = serialize({**example, "audio": audio})
            writer.write(content)
            lengths.append(record_lengths({**example, "audio": audio}))
            samples += len(audio)
            num_bytes += len(content)
            if text_writer is not None:
                content = serialize({**example, "audio": np.zeros(0, np.int16)})
                text_writer.write(content)
                text_bytes += len(content)
    finally:
        writer.close()
        if text_writer is not None:
            text_writer.close()
    save_lengths(path.with_name(path.name + LENGTHS), as_array(lengths))
    stats = ShardStats(
        fingerprint(utterances), len(lengths), samples, num_bytes, tuple(issues), text_bytes
    )
    stats_path = path.with_name(path.name + STATS)
    stats_path.write_text(json.dumps(dataclasses.asdict(stats)) + "\n", encoding="utf-8")
    # The record file comes last, for it makes the shard complete.
    partial.replace(record)
    return stats


def _read_audio(utterance: Utterance, issues: list[Issue]) -> np.ndarray | None:
    """Returns the int16 waveform at 16 kHz, or None if the audio cannot be used."""
    if not utterance.audio:
        return np.zeros(0, np.int16)

    def add(kind: str, detail: str = "") -> None:
        issues.append(Issue(kind, utterance.split, utterance.id, detail or utterance.audio))

    path = Path(utterance.audio)
    if not path.is_file():
        add("missing audio")
        return None
    try:
        with _recording(path, utterance.embedded) as recording:
            if recording.stat().st_size == 0:
                add("empty audio")
                return None
            samples, findings = read_recording(recording, utterance.spans)
    except EmptyAudioError as error:
        add("empty audio" if utterance.spans is None else "outside of audio", str(error))
        return None
    except UserError as error:
        add("unreadable audio", str(error))
        return None
    for finding in findings:
        add(finding.kind, f"{utterance.audio}: {finding.detail}")
    if any(finding.kind not in KEPT_KINDS for finding in findings):
        return None
    if utterance.spans is not None:
        expected = sum(end - begin for begin, end in utterance.spans)
        missing = expected - len(samples) / SAMPLE_RATE
        # Resampling and rounded times cost a few samples per span. Infinity is the end of the file.
        if math.isfinite(expected) and missing > 0.02 * (1 + len(utterance.spans)):
            add("cut short", f"{utterance.audio}: {missing:.2f} of {expected:.2f} seconds missing")
    return to_int16(samples)


@contextlib.contextmanager
def _recording(path: Path, embedded: Embedded | None) -> Iterator[Path]:
    """Yields the audio file itself, or a temporary copy of what a Parquet file has inside.

    Raises:
        UserError: As inside the block; messages name the Parquet file.
    """
    if embedded is None:
        yield path
        return
    content = read_embedded(str(path), embedded)
    with tempfile.NamedTemporaryFile(prefix="maestro_audio_") as copy:
        copy.write(content)
        copy.flush()
        try:
            yield Path(copy.name)
        except UserError as error:
            place = f"row {embedded.row + 1} of {path}"
            raise type(error)(str(error).replace(copy.name, place)) from error
