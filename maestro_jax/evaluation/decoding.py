"""Decodes a test set in batches of similar lengths, whatever its longest utterance is.

Utterances are put into buckets by their length, and padded to the length of their bucket. Buckets
and batch sizes per device follow from the test set and the model alone: they are the same on any
number of processes and devices, and after a restart, and so are the hypotheses. Processes share the
test set by whole batches, so that all batches but the last of a bucket are full.

Audio that is longer than any that the model was trained on is cut by
`maestro_jax.inference.segmentation`, as `maestro transcribe` does.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from maestro_jax.batches import SAMPLE_RATE
from maestro_jax.evaluation.evaluate import DecodingStatistics
from maestro_jax.evaluation.predictions import Prediction
from maestro_jax.inference.segmentation import DecodedSegment, Segment, cut_segments, join_segments
from maestro_jax.inference.transcriber import Transcriber
from maestro_jax.scoring.metrics import Kind

if TYPE_CHECKING:
    from maestro_jax.data.evaluation_examples import EvaluationExample

log = logging.getLogger(__name__)

MOST_BUCKETS = 12
AUDIO_MULTIPLE = 1280
"""Lengths of audio are multiples of it: two frames of an encoder, in samples."""
TEXT_MULTIPLE = 8
_MOST_ROWS = 128
# Seconds of audio, or hundreds of tokens, per device and batch. A CPU gains nothing from more; an
# accelerator needs as much to be busy in the sequential part of the search.
_BATCH_UNITS = {"cpu": 64.0}
_BATCH_UNITS_OF_ACCELERATORS = 960.0
_TOKENS_PER_UNIT = 100
# What the search of a batch takes however many rows it has, in rows. It is a loop over labels and
# frames, so that a batch takes as long as its length, and an accelerator is idle for most of it.
_SEQUENTIAL_ROWS = {"cpu": 2.0}
_SEQUENTIAL_ROWS_OF_ACCELERATORS = 16.0
# Less than could be decoded while a program is compiled: it is compiled once, for all checkpoints.
_UNITS_WORTH_COMPILING = {"cpu": 30}
_UNITS_WORTH_COMPILING_ON_ACCELERATORS = 6_000
_USABLE_MEMORY = 0.8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bucket:
    """The shape of a batch on one device.

    Attributes:
        length: Samples or tokens that utterances are padded to.
        rows: Number of utterances per device.
    """

    length: int
    rows: int


def choose_buckets(
    lengths: np.ndarray | None,
    *,
    longest: int,
    multiple: int,
    units: float,
    unit: int,
    sequential_rows: float = 0.0,
    worth_compiling: float = 0.0,
) -> list[Bucket]:
    """Chooses the lengths and batch sizes that decode a test set in the least time.

    A batch takes as long as its rows, with their padding and those that stay empty, and
    `sequential_rows` more. A bucket of some length has as few batches as `units` allow, and no more
    rows than fill them.

    Args:
        lengths: Samples or tokens of all utterances, `[utterances]`; None if they are not known.
        longest: The longest utterance that is decoded whole; longer ones are cut into segments.
        multiple: Lengths but for the last are multiples of it.
        units: Units of audio or text per device and batch; a single row may have more.
        unit: Samples or tokens of a unit.
        sequential_rows: What a batch takes besides its rows, in rows.
        worth_compiling: Units that a further bucket has to save.

    Returns:
        Buckets of rising length. The last one has `longest`, or less if no utterance is longer.
    """
    from maestro_jax.data.bucketing import best_divisions

    if lengths is None:
        halves = [longest >> shift for shift in (3, 2, 1)]
        limits = sorted({-(-half // multiple) * multiple for half in halves if half} | {longest})
        return [Bucket(length=limit, rows=int(_most_rows(limit, units * unit))) for limit in limits]
    known = np.maximum(np.asarray(lengths, np.int64), 1)
    # Longer ones are cut into segments, nearly all of which are about as long as they may be.
    known = np.minimum(np.repeat(known, -(-known // longest)), longest)
    # A multiple again, unless that is more than the model knows.
    top = min(-(-int(known.max()) // multiple) * multiple, longest)
    steps = -(-top // multiple)
    ends = np.minimum(np.arange(steps + 1) * multiple, top)
    # [steps + 1]: the utterances up to each end.
    below = np.searchsorted(np.sort(known), ends, side="right")
    # [steps + 1, steps + 1]: the utterances from one end to another one, in batches.
    inside = np.maximum(below[None, :] - below[:, None], 0)
    batches = -(-inside // _most_rows(ends, units * unit))
    rows = -(-inside // np.maximum(batches, 1))
    costs = batches * (rows + sequential_rows) * ends
    divisions = best_divisions(costs, MOST_BUCKETS)
    best = min(
        divisions,
        key=lambda pieces: (
            sum(costs[piece] for piece in pieces) + worth_compiling * unit * len(pieces)
        ),
    )
    return [
        Bucket(length=int(ends[end]), rows=int(rows[begin, end]))
        for begin, end in best
        if inside[begin, end]
    ]


def _most_rows(length: Any, most: float) -> Any:
    """Returns the rows of a length, or of several, that make up no more than `most` in all."""
    return np.clip(most // np.maximum(length, 1), 1, _MOST_ROWS).astype(np.int64)


def device_memory() -> int:
    """Returns the bytes of memory of a device of this process; 0 where it is not known.

    Devices of a host share its memory. What other programs use of it does not count: batches must
    not depend on the moment.
    """
    device = jax.local_devices()[0]
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return int(stats["bytes_limit"])
    try:
        size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return 0
    return size // 2 // jax.local_device_count()


class TestSetDecoder:
    """Decodes the examples of one test set.

    Args:
        transcriber: The model.
        kind: `asr`, `st` or `mt`.
        lengths: Samples of the audio, or tokens of the text, of the whole test set,
            `[utterances]`; None if they are not known.
        target_language: Language of translations where an example names none.

    Attributes:
        buckets: The shapes of the batches.
        statistics: What has been decoded so far.
    """

    __test__ = False  # Not a class of tests, whatever pytest makes of its name.

    def __init__(
        self,
        transcriber: Transcriber,
        kind: Kind,
        lengths: np.ndarray | None,
        *,
        target_language: str = "en",
    ) -> None:
        self._transcriber = transcriber
        self._kind = kind
        self._target_language = target_language
        self.statistics = DecodingStatistics()
        self._compiled_before = transcriber.compile_seconds
        backend = jax.default_backend()
        units = _BATCH_UNITS.get(backend, _BATCH_UNITS_OF_ACCELERATORS)
        worth = _UNITS_WORTH_COMPILING.get(backend, _UNITS_WORTH_COMPILING_ON_ACCELERATORS)
        if kind == "mt":
            longest = transcriber.tokens if lengths is None else max(1, int(np.max(lengths)))
            self._feature, multiple, unit = "text", TEXT_MULTIPLE, _TOKENS_PER_UNIT
        else:
            longest = transcriber.samples
            self._feature, multiple, unit = "audio", AUDIO_MULTIPLE, SAMPLE_RATE
        self.buckets = choose_buckets(
            lengths,
            longest=longest,
            multiple=multiple,
            units=units,
            unit=unit,
            sequential_rows=_SEQUENTIAL_ROWS.get(backend, _SEQUENTIAL_ROWS_OF_ACCELERATORS),
            worth_compiling=worth,
        )
        self._longest = longest
        self._lengths = lengths
        self._queues: list[list[tuple[_Utterance, int, Segment]]] = [[] for _ in self.buckets]

    def describe(self) -> str:
        """Returns the shapes of the batches for a log: `3.2 s x 19, 6.4 s x 10 per device`."""
        audio = self._feature == "audio"
        shapes = [
            f"{b.length / SAMPLE_RATE:.1f} s x {b.rows}" if audio else f"{b.length} x {b.rows}"
            for b in self.buckets
        ]
        what = "audio" if audio else "tokens"
        return f"batches per device ({what} x rows): {', '.join(shapes)}"

    def share(self, index: int, count: int, *, shards: int) -> np.ndarray | None:
        """Chooses the utterances that a process decodes: its part of the batches.

        Call it before `fit_memory`: the processes must agree on it, whatever memory they have.

        Args:
            index: Number of the process.
            count: Number of processes.
            shards: Number of devices of each process.

        Returns:
            Bool `[utterances]`, of which each is True in one process; None if lengths are not
            known.
        """
        if self._lengths is None:
            return None
        places = np.searchsorted(
            [bucket.length for bucket in self.buckets],
            np.minimum(self._lengths, self.buckets[-1].length),
        )
        chosen, dealt = np.zeros(len(places), bool), 0
        # The longest first, so that what one process has more than another one is short.
        for place in reversed(range(len(self.buckets))):
            members = np.flatnonzero(places == place)
            batches = np.arange(len(members)) // (self.buckets[place].rows * shards)
            chosen[members] = (dealt + batches) % count == index
            dealt += int(batches[-1]) + 1 if len(batches) else 0
        return chosen

    def fit_memory(self) -> None:
        """Compiles the searches, and halves batch sizes until they fit the memory of a device.

        The compiler says how much a program needs. On several processes each comes to the same
        result, if their devices are alike.
        """
        usable = device_memory() * _USABLE_MEMORY
        # Memory grows with the samples of a batch or, for attention, with the squares of its rows.
        for power in (2, 1):
            while usable:
                largest = max(self.buckets, key=lambda b: (b.rows * b.length**power, b.length))
                rows = largest.rows * self._transcriber.data_shards
                if self._compile(self._empty(largest.length, rows)) <= usable or largest.rows == 1:
                    break
                self.buckets = [
                    dataclasses.replace(bucket, rows=max(1, bucket.rows // 2))
                    for bucket in self.buckets
                ]
                log.info("batches are halved to fit the memory of a device")

    def decode(self, examples: Iterable[EvaluationExample]) -> Iterator[Prediction]:
        """Decodes examples; yields a prediction when all segments of an utterance are decoded."""
        statistics, began = self.statistics, time.monotonic()
        for example in examples:
            statistics.input_seconds += time.monotonic() - began
            self._add(example)
            for place in range(len(self.buckets)):
                if len(self._queues[place]) >= self._rows(place):
                    yield from self._decode_batch(place)
            began = time.monotonic()
        statistics.input_seconds += time.monotonic() - began
        for place in range(len(self.buckets)):
            while self._queues[place]:
                yield from self._decode_batch(place)
        statistics.compile_seconds = self._transcriber.compile_seconds - self._compiled_before

    def _rows(self, place: int) -> int:
        return self.buckets[place].rows * self._transcriber.data_shards

    def _add(self, example: EvaluationExample) -> None:
        """Puts the segments of an utterance into their queues."""
        values = np.asarray(example.features[self._feature])
        utterance = _Utterance(example, len(values))
        if len(values) <= self._longest:
            segments = [Segment(start=0, samples=values)]
        else:
            segments = list(cut_segments([values.astype(np.float32) / 32768], self._longest))
        # A recording without speech has no segment, and the empty hypothesis.
        utterance.segments = [None] * max(1, len(segments))
        if not segments:
            segments = [Segment(start=0, samples=values[:0])]
        for number, segment in enumerate(segments):
            self._queues[self._place(len(segment.samples))].append((utterance, number, segment))

    def _place(self, length: int) -> int:
        """Returns the index of the first bucket for a length, which may have to be added."""
        last = self.buckets[-1]
        if length > last.length:
            # The utterance became longer after its length had been written down.
            rows = max(1, last.rows * last.length // self._longest)
            self.buckets.append(Bucket(length=self._longest, rows=rows))
            self._queues.append([])
        return int(np.searchsorted([bucket.length for bucket in self.buckets], length))

    def _empty(self, length: int, rows: int) -> dict[str, np.ndarray]:
        dtype = np.int16 if self._feature == "audio" else np.int32
        features = {
            self._feature: np.zeros((rows, length), dtype),
            f"{self._feature}_length": np.zeros(rows, np.int32),
            "language": np.zeros(rows, np.int32),
        }
        if self._kind != "asr":
            features["target_language"] = np.zeros(rows, np.int32)
        return features

    def _compile(self, features: Mapping[str, np.ndarray]) -> int:
        return self._transcriber.compile(features, features.get("target_language"))

    def _search(self, features: Mapping[str, np.ndarray]) -> Any:
        target = features.get("target_language")
        if self._feature == "text":
            assert target is not None
            return self._transcriber.search_text(features, target)
        return self._transcriber.search(features, target)

    def _decode_batch(self, place: int) -> Iterator[Prediction]:
        rows, bucket = self._rows(place), self.buckets[place]
        batch, self._queues[place] = self._queues[place][:rows], self._queues[place][rows:]
        features = self._empty(bucket.length, rows)
        for row, (utterance, _, segment) in enumerate(batch):
            count = len(segment.samples)
            samples = segment.samples
            if samples.dtype.kind == "f":
                samples = np.clip(np.rint(samples * 32768), -32768, 32767)
            features[self._feature][row, :count] = samples
            features[f"{self._feature}_length"][row] = count
            for name, identity in utterance.example.languages.items():
                if name in features:
                    features[name][row] = identity
        statistics = self.statistics
        began, compiled = time.monotonic(), self._transcriber.compile_seconds
        hypotheses = self._search(features)
        for row, (utterance, number, segment) in enumerate(batch):
            utterance.segments[number] = self._transcriber.decoded_segment(
                hypotheses, row, segment, nbest=1
            )
        seconds = time.monotonic() - began
        statistics.decode_seconds += seconds - (self._transcriber.compile_seconds - compiled)
        if self._feature == "audio":
            statistics.padded_seconds += rows * bucket.length / SAMPLE_RATE
        for utterance, _, _ in batch:
            if utterance.complete and not utterance.done:
                utterance.done = True
                statistics.utterances += 1
                if self._feature == "audio":
                    statistics.audio_seconds += utterance.length / SAMPLE_RATE
                yield self._prediction(utterance)

    def _prediction(self, utterance: _Utterance) -> Prediction:
        example, segments = utterance.example, [s for s in utterance.segments if s is not None]
        strings, decode = example.strings, self._transcriber.vocabulary.decode
        transcript = join_segments(
            segments, samples=utterance.length, decode=decode, target_language=None
        )
        # White space of a hypothesis that was not cut stays as the vocabulary writes it.
        text = decode(segments[0].ids) if len(segments) == 1 else transcript.text
        target = strings["target_language"] or self._target_language
        return Prediction(
            id=strings["id"],
            language=strings["language"],
            target_language="" if self._kind == "asr" else target,
            reference=strings["text" if self._kind == "asr" else "translation"],
            hypothesis=text,
            task=strings["task"],
            index=example.index,
            seconds=utterance.length / SAMPLE_RATE if self._feature == "audio" else 0.0,
            segments=len(segments),
            # The last digits differ with the shapes of batches.
            score=round(transcript.score, 2),
            words=tuple(
                (word.text, word.start and round(word.start, 2), round(word.score, 2))
                for word in transcript.words
            ),
            speaker=strings["speaker"],
            heard=self._transcriber.hear(text),
        )


@dataclasses.dataclass
class _Utterance:
    """An utterance of which not all segments are decoded yet."""

    example: EvaluationExample
    length: int
    segments: list[DecodedSegment | None] = dataclasses.field(default_factory=list)
    done: bool = False

    @property
    def complete(self) -> bool:
        return all(segment is not None for segment in self.segments)
