"""Recordings become batches of segments, and batches transcripts; the model is a stand-in."""

from __future__ import annotations

import types
from collections.abc import Iterator

import numpy as np
import pytest

from maestro_jax.decoding.hypotheses import Hypotheses
from maestro_jax.errors import UserError
from maestro_jax.inference.transcriber import ROWS_PER_DEVICE, Transcriber
from maestro_jax.text.languages import LanguageTable

RATE = 16_000
DEVICES = 2
ROOM = 3 * RATE
MINUTES = 10


class Fake(Transcriber):
    """Hears in each row one token: how loud the row is, counted in tenths."""

    def __init__(self) -> None:
        self.run = types.SimpleNamespace(
            model=types.SimpleNamespace(needs_language=False, frame_seconds=0.04),
            objective=types.SimpleNamespace(streams=("paired",)),
        )
        self.vocabulary = types.SimpleNamespace(
            vocab_size=64,
            decode=lambda ids: "".join(f" {i}" for i in ids),
            pieces=lambda ids: [f"\u2581{i}" for i in ids],
        )
        self.languages = LanguageTable()
        self.decoder = "ctc"
        self.samples = ROOM
        self.batches: list[np.ndarray] = []

    data_shards = DEVICES

    def search(self, features, target_language=None, language=None) -> Hypotheses:
        audio, lengths = features["audio"], features["audio_length"]
        assert audio.shape == (len(lengths), ROOM) and audio.dtype == np.int16
        self.batches.append(lengths)
        tokens = np.rint(10 * np.abs(audio / 32768.0).max(axis=1)).astype(np.int32)
        rows = len(lengths)
        return Hypotheses(
            tokens=tokens[:, None, None],
            lengths=(lengths > 0).astype(np.int32)[:, None],
            frames=np.full((rows, 1, 1), 5, np.int32),
            token_scores=np.full((rows, 1, 1), -0.5, np.float32),
            scores=np.full((rows, 1), -1.0, np.float32),
            fused_scores=np.full((rows, 1), -1.0, np.float32),
            truncated=np.zeros((rows, 1), bool),
        )


def syllable(loudness: float, seconds: float = 1.0) -> np.ndarray:
    """A burst that swells and fades, with a peak of so much."""
    rng = np.random.default_rng(0)
    burst = np.hanning(round(seconds * RATE)) * rng.uniform(-1, 1, round(seconds * RATE))
    return (burst * loudness / np.abs(burst).max()).astype(np.float32)


def recording(*loudness: float, pause: float = 2.0) -> np.ndarray:
    silence = np.zeros(round(pause * RATE), np.float32)
    return np.concatenate([x for value in loudness for x in (silence, syllable(value))])


def test_segments_of_several_recordings_share_batches():
    values = [
        [(1 + (i * 7 + k) % 9) / 10 for k in range(count)] for i, count in enumerate((1, 30, 7))
    ]
    fake = Fake()
    found = fake.transcribe([recording(*one) for one in values])
    for one, transcript in zip(values, found, strict=True):
        assert transcript.text.split() == [str(round(10 * value)) for value in one]
        assert transcript.segments == len(one)
        assert transcript.seconds == 3.0 * len(one)
        # A token is 0.2 s after the beginning of its segment, which follows 2 s of silence.
        for number, (word, (begin, _)) in enumerate(
            zip(transcript.words, transcript.spans, strict=True)
        ):
            assert word.start == pytest.approx(begin + 0.2)
            assert 3 * number + 1.85 <= begin <= 3 * number + 2.1
    # 38 segments: all batches are of one shape, and full but for the last.
    assert [len(lengths) for lengths in fake.batches] == [ROWS_PER_DEVICE * DEVICES] * 3
    assert [int((lengths > 0).sum()) for lengths in fake.batches] == [16, 16, 6]


def test_a_short_recording_takes_a_small_batch():
    fake = Fake()
    [found] = fake.transcribe([recording(0.5)])
    assert found.text == "5" and [len(lengths) for lengths in fake.batches] == [DEVICES]


def test_silence_is_not_decoded():
    fake = Fake()
    found = fake.transcribe([np.zeros(10 * RATE, np.float32), np.zeros(0, np.float32)])
    assert [(one.text, one.segments, one.seconds) for one in found] == [("", 0, 10.0), ("", 0, 0.0)]
    assert fake.batches == []


def test_a_recording_that_breaks_off_is_an_error_in_its_place():
    def breaks() -> Iterator[np.ndarray]:
        yield recording(0.3, 0.4)
        raise UserError("broken.wav cannot be read")

    fake = Fake()
    found = list(fake.transcribe_chunks([[recording(0.1)], breaks(), [recording(0.2)]]))
    assert found[0].text == "1" and found[2].text == "2"
    assert isinstance(found[1], UserError) and "broken.wav" in str(found[1])
    with pytest.raises(UserError, match=r"broken\.wav"):
        next(error for error in found if isinstance(error, UserError) and _raise(error))


def _raise(error: UserError) -> None:
    raise error


def test_what_is_held_does_not_grow():
    """Chunks are made one by one, and no more of them are alive than the next cut needs."""
    alive: list[int] = []
    counts: list[int] = []

    class Chunk(np.ndarray):
        def __del__(self) -> None:
            if self.base is None:
                alive.append(-1)

    minute = recording(*[0.5] * 20)

    def chunks() -> Iterator[np.ndarray]:
        for _ in range(MINUTES):
            for at in range(0, len(minute), RATE):
                chunk = Chunk(RATE, np.float32)
                chunk[:] = minute[at : at + RATE]
                alive.append(1)
                counts.append(sum(alive))
                yield chunk

    told = []
    fake = Fake()
    [found] = fake.transcribe_chunks([chunks()], progress=told.append)
    assert found.segments == 20 * MINUTES and found.seconds == 60 * MINUTES
    assert sum(told) == 60 * MINUTES * RATE
    # A chunk is copied into the buffer and let go.
    assert max(counts) <= 3


def test_results_come_while_later_recordings_are_unread():
    read = []

    def recordings() -> Iterator[list[np.ndarray]]:
        for number in range(100):
            read.append(number)
            yield [recording(0.5)]

    results = Fake().transcribe_chunks(recordings())
    next(results)
    assert len(read) == ROWS_PER_DEVICE * DEVICES


def test_languages_are_looked_at_before_anything_is_read():
    def recordings() -> Iterator[list[np.ndarray]]:
        raise AssertionError("read")
        yield

    with pytest.raises(UserError, match="unknown language 'xx'"):
        next(Fake().transcribe_chunks(recordings(), target_language="xx"))
