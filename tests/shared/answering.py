"""A stand-in for `Transcriber` that answers by a function, for tests of what is around it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from maestro_jax.inference.segmentation import DecodedSegment, Segment
from maestro_jax.inference.timed_words import NBestEntry
from maestro_jax.text.languages import LanguageTable
from maestro_jax.text.vocabularies import ByteVocabulary


class Answering:
    """Writes what `answer` says to the valid part of each row.

    Args:
        answer: From samples or tokens, and the id of the target language (None for transcripts), to
            a text.
        samples: Samples of the longest audio.
        data_shards: Number of devices.
    """

    tokens = 40
    compile_seconds = 0.0

    def __init__(
        self,
        answer: Callable[[np.ndarray, int | None], str],
        *,
        samples: int = 60_000,
        data_shards: int = 1,
    ) -> None:
        self.answer = answer
        self.samples, self.data_shards = samples, data_shards
        self.vocabulary = ByteVocabulary()
        self.languages = LanguageTable()
        self.shapes: list[tuple[int, int]] = []

    def compile(self, features: Mapping[str, np.ndarray], target: np.ndarray | None) -> int:
        """Compiles nothing, which takes no memory."""
        return 0

    def search(self, features: Mapping[str, np.ndarray], target: np.ndarray | None) -> list[str]:
        """Answers a batch."""
        [name] = [name for name in ("audio", "text") if name in features]
        self.shapes.append(features[name].shape)
        return [
            self.answer(row[:length], None if target is None else int(target[index]))
            if length
            else ""
            for index, (row, length) in enumerate(
                zip(features[name], features[f"{name}_length"], strict=True)
            )
        ]

    search_text = search

    def decoded_segment(
        self, hypotheses: Any, row: int, segment: Segment, *, nbest: int | None = None
    ) -> DecodedSegment:
        """Returns one answer."""
        text = hypotheses[row]
        best = NBestEntry(text=text, score=-math.sqrt(len(text)), fused_score=0.0, tokens=())
        return DecodedSegment(
            start=segment.start,
            end=segment.end,
            overlap=segment.overlap,
            ids=self.vocabulary.encode(text),
            alternatives=(best,),
        )

    def hear(self, text: str) -> str:
        """Recognises no language."""
        return ""
