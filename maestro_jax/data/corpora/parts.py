"""Parts of a prepared split: some utterances, read, converted and written by one process.

A part is complete when its record file and the account beside it are there; an interrupted
preparation goes on with the parts that are not.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np

from maestro_jax.audio.reading import EmptyAudioError, read_recording, to_int16
from maestro_jax.batches import SAMPLE_RATE
from maestro_jax.data.corpora.problems import KEPT, Problem
from maestro_jax.data.corpora.utterance import Utterance
from maestro_jax.data.lengths import as_array, record_lengths, save_lengths
from maestro_jax.errors import UserError

SUFFIX = ".array_record"
LENGTHS = ".lengths.npy"
TEXTS = ".texts"
"""Of the records once more, without audio, for tasks of text: a thousandth of the bytes."""
ENDINGS = (SUFFIX, LENGTHS, ".json")
"""Of the files of a part: its records, how long they are, and its account."""


@dataclasses.dataclass(frozen=True)
class Account:
    """What became of the utterances of a part.

    Attributes:
        fingerprint: Of what was asked for.
        utterances: How many were written.
        samples: Of audio, at 16 kHz.
        num_bytes: Of the records.
        text_bytes: Of the records without audio, if there are such.
        problems: What was wrong with their audio.
    """

    fingerprint: str
    utterances: int
    samples: int
    num_bytes: int
    problems: tuple[Problem, ...] = ()
    text_bytes: int = 0


@functools.cache
def record_features() -> Any:
    """The TFDS features of a record: the same for every corpus."""
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
    """Tells a part from one of other utterances, or of the same ones described otherwise."""
    digest = hashlib.blake2b(digest_size=16)
    for utterance in utterances:
        digest.update(repr(utterance).encode())
    return digest.hexdigest()


def account_of(path: Path, utterances: tuple[Utterance, ...]) -> Account | None:
    """The account of a part that is complete; None if it has yet to be written.

    Args:
        path: Of the part, without `SUFFIX`.
        utterances: What it should hold.
    """
    endings = (*ENDINGS, TEXTS) if _has_both(utterances) else ENDINGS
    if not all(path.with_name(path.name + ending).is_file() for ending in endings):
        return None
    account = path.with_name(path.name + ".json")
    try:
        values = json.loads(account.read_text(encoding="utf-8"))
        values["problems"] = tuple(Problem(*problem) for problem in values["problems"])
        found = Account(**values)
    except (ValueError, TypeError, KeyError):
        return None
    return found if found.fingerprint == fingerprint(utterances) else None


def _has_both(utterances: tuple[Utterance, ...]) -> bool:
    """Whether there is audio to leave out, and text to keep."""
    return any(one.audio and (one.text or one.translation) for one in utterances)


def write_part(path: Path, utterances: tuple[Utterance, ...]) -> Account:
    """Reads the audio of some utterances and writes them all.

    Args:
        path: Of the part, without `SUFFIX`; its directory exists.
        utterances: What it holds. Those whose audio cannot be used are left out and accounted for.

    Returns:
        The account, which has been written beside the records.
    """
    from array_record.python import array_record_module

    serialize = record_features().serialize_example
    record = path.with_name(path.name + SUFFIX)
    partial = record.with_name(f".{record.name}.partial")
    problems: list[Problem] = []
    lengths: list[tuple[int, int, int]] = []
    samples = num_bytes = text_bytes = 0
    # Every record is a group of its own: they are read one by one, at random.
    writer = array_record_module.ArrayRecordWriter(str(partial), "group_size:1")
    texts = None
    path.with_name(path.name + TEXTS).unlink(missing_ok=True)
    if _has_both(utterances):
        path_of_texts = str(path.with_name(path.name + TEXTS))
        texts = array_record_module.ArrayRecordWriter(path_of_texts, "group_size:1")
    try:
        for utterance in utterances:
            audio = _audio(utterance, problems)
            if audio is None:
                continue
            example = {
                name: getattr(utterance, name)
                for name in ("id", "text", "raw_text", "translation", "language", "speaker")
            }
            # Models read and write composed text; the raw text stays as the corpus has it.
            for name in ("text", "translation"):
                example[name] = unicodedata.normalize("NFC", example[name])
            content = serialize({**example, "audio": audio})
            writer.write(content)
            lengths.append(record_lengths({**example, "audio": audio}))
            samples += len(audio)
            num_bytes += len(content)
            if texts is not None:
                content = serialize({**example, "audio": np.zeros(0, np.int16)})
                texts.write(content)
                text_bytes += len(content)
    finally:
        writer.close()
        if texts is not None:
            texts.close()
    save_lengths(path.with_name(path.name + LENGTHS), as_array(lengths))
    account = Account(
        fingerprint(utterances), len(lengths), samples, num_bytes, tuple(problems), text_bytes
    )
    account_path = path.with_name(path.name + ".json")
    account_path.write_text(json.dumps(dataclasses.asdict(account)) + "\n", encoding="utf-8")
    # Last, for it makes the part complete.
    partial.replace(record)
    return account


def _audio(utterance: Utterance, problems: list[Problem]) -> np.ndarray | None:
    """The waveform as it is written, or None if there is nothing to write."""
    if not utterance.audio:
        return np.zeros(0, np.int16)

    def add(kind: str, detail: str = "") -> None:
        problems.append(Problem(kind, utterance.split, utterance.id, detail or utterance.audio))

    path = Path(utterance.audio)
    if not path.is_file():
        add("missing audio")
        return None
    if path.stat().st_size == 0:
        add("empty audio")
        return None
    try:
        samples, findings = read_recording(path, utterance.spans)
    except EmptyAudioError as error:
        add("empty audio" if utterance.spans is None else "outside of audio", str(error))
        return None
    except UserError as error:
        add("unreadable audio", str(error))
        return None
    for finding in findings:
        add(finding.kind, f"{utterance.audio}: {finding.detail}")
    if any(finding.kind not in KEPT for finding in findings):
        return None
    if utterance.spans is not None:
        wanted = sum(end - begin for begin, end in utterance.spans)
        missing = wanted - len(samples) / SAMPLE_RATE
        # A resampler and the rounding of times may take a few samples. Infinity is the file's end.
        if math.isfinite(wanted) and missing > 0.02 * (1 + len(utterance.spans)):
            add("cut short", f"{utterance.audio}: {missing:.2f} of {wanted:.2f} seconds missing")
    return to_int16(samples)
